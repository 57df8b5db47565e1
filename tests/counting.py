"""Work counted rather than timed, so that a test says the same on any machine."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Calls:
    """How many calls of Python functions, and of C functions from Python, one thread has made."""

    def __init__(self) -> None:
        self.made = 0

    def start(self) -> None:
        """Count from here."""
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Count up to here."""
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        self.made += event in ("call", "c_call")


@contextmanager
def counted_calls() -> Iterator[Calls]:
    """Count the calls that this thread makes inside."""
    calls = Calls()
    calls.start()
    try:
        yield calls
    finally:
        calls.stop()
