"""A line for whoever waits: what is going on, once it has taken some seconds, and how long since then."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

_FIRST_SECONDS, _GROWTH = 2.5, 2.0


class Waiting:
    """Says on standard error what takes long, after 2.5 seconds and then ever more rarely; nothing if it does not.

    with Waiting("loading torch and DeepSpeed"):
        import torch
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        """
        Args:
            quiet: says nothing, as ranks other than 0.
        """
        self._what = what
        self._quiet = quiet
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if not self._quiet:
            self._thread.join()

    def _watch(self) -> None:
        started, pause = time.monotonic(), _FIRST_SECONDS
        while not self._done.wait(pause):
            seconds = time.monotonic() - started
            sys.stderr.write(f"{self._what}, {seconds:.0f} s ...\n")
            sys.stderr.flush()
            pause *= _GROWTH
