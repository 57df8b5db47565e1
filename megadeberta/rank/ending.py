"""The end of a process that joined others: its exit code must not depend on what their threads still hold."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_has_group_threads = False


def expect_group_threads() -> None:
    """A process group is about to start here: from now on ``ending`` ends the process itself."""
    global _has_group_threads
    _has_group_threads = True


@contextmanager
def ending() -> Iterator[None]:
    """Around all of a command: where a process group was started, end without taking the interpreter apart.

    A thread of gloo that gives a tensor back during interpreter shutdown ends the process with SIGABRT,
    whatever its exit code was, and ``destroy_process_group`` does not wait for these threads (torch 2.13). What is
    registered to run at exit runs, what was written is flushed, and a bug keeps its traceback and Python's code 1.
    """
    try:
        yield
    except BaseException as error:
        if not _has_group_threads:
            raise
        if isinstance(error, SystemExit):  # as Python reads it: nothing is 0, and what is no number is said
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if not isinstance(error.code, int | None):
                sys.stderr.write(f"{error.code}\n")
        else:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
