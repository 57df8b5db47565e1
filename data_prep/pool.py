"""Running one function over many items, in this process or in several, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.remote.files import FilePath
from megadeberta.worker_server import start_server

_BLOCKED = (signal.SIGINT,)
"""Ctrl-C reaches the whole group; the parent alone decides what happens then."""
_WORTH_A_SERVER = 16 << 20
"""Bytes of text that take workers longer than their server needs to start."""


def run_in_order(
    function: Callable[..., Any], items: Iterable[tuple[Any, ...]], *, context: Any, workers: int
) -> Iterator[Any]:
    """Yield ``function(context, *item)`` for every item, in order; items are taken only as results are consumed.

    One worker runs in this process. More are forked from a server process that has their module loaded, get ``context``
    once, and end when this process does.

    Raises:
        DataError: a worker was killed from outside.
    """
    if workers == 1:
        for item in items:
            yield function(context, *item)
        return
    server = start_server(_modules(function), blocked=_BLOCKED)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=server,
        initializer=_start_worker,
        initargs=(function, context),
    )
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most likely for lack of memory; run the same command again with fewer "
            "--workers: finished parts are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_early(corpora: Iterable[FilePath], *, workers: int) -> None:
    """Start the server of the workers that encode, where ``corpora`` will surely need several.

    It loads its modules while this process loads others, finds the files and reads the vocabulary.
    """
    sizes = (path.stat().st_size for path in corpora if isinstance(path, Path) and path.is_file())
    if workers > 1 and sum(sizes) >= _WORTH_A_SERVER:
        # Every worker loads the main script, which is that of the command line.
        start_server(["megadeberta.data_prep.work", "megadeberta.cli"], blocked=_BLOCKED)


def _modules(function: Callable[..., Any]) -> list[str]:
    """What workers need: the module of their work. The main script, which each of them imports, is light."""
    return [name for name in (function.__module__,) if name != "__main__"]


_WORK: tuple[Callable[..., Any], Any] | None = None


def _start_worker(function: Callable[..., Any], context: Any) -> None:
    global _WORK
    _WORK = (function, context)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked already, unless another started the server
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot say so: its end of this pipe closes.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: tuple[Any, ...]) -> Any:
    assert _WORK is not None
    function, context = _WORK
    return function(context, *item)
