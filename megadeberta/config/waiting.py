"""For whoever waits: what is going on, once it has taken some seconds, and how much of it is done.

On a terminal that is a bar which disappears at the end; elsewhere lines, more rarely after the first minute.
"""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")

_FIRST_SECONDS, _SHARE = 2.5, 0.05
_TICK_SECONDS = 0.2
_stack: list["Waiting"] = []
"""Those of this process under way, outermost first."""


class Waiting:
    """Says on standard error what takes longer than 2.5 seconds; nothing if it does not.

    with Waiting("loading torch and DeepSpeed"):
        import torch

    Inside another one it changes what that one says, until it ends.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        """
        Args:
            quiet: says nothing, as ranks other than 0.
        """
        self._what = what
        self._quiet = quiet
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._amounts = (0, 0)  # done, of how many; 0 = not known

    def __enter__(self) -> Self:
        if self._quiet:
            return self
        if not _stack:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        _stack.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._quiet:
            return
        _stack.remove(self)
        if self._thread is not None:
            self._done.set()
            self._thread.join()

    def say(self, what: str) -> None:
        """Something else is going on from now on."""
        self._what = what

    def _watch(self) -> None:
        started = time.monotonic()
        if self._done.wait(_FIRST_SECONDS):
            return
        if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._show_bar()
        else:
            self._write_lines(started)

    def _show_bar(self) -> None:
        from rich.console import Console

        with bar(Console(stderr=True)) as shown:
            task = shown.add_task(self._what, total=None, rate="")
            while not self._done.wait(_TICK_SECONDS):
                inner = _innermost(self)
                done, total = inner._amounts
                shown.update(task, description=inner._what, total=total or None, completed=done)

    def _write_lines(self, started: float) -> None:
        while True:
            inner = _innermost(self)
            done, total = inner._amounts
            part = f", {100 * done // total} %" if total else ""
            seconds = time.monotonic() - started
            sys.stderr.write(f"{inner._what}{part}, {seconds:.0f} s ...\n")
            sys.stderr.flush()
            if self._done.wait(pause_after(seconds)):
                return


def pause_after(seconds: float) -> float:
    """How long after so many seconds the next line follows: under 3 s in the first minute, then a share of all."""
    return max(_FIRST_SECONDS, _SHARE * seconds)


def counted(items: Iterable[Item], *, total: int | None = None) -> Iterator[Item]:
    """The items; whoever waits sees how many of them are done.

    Args:
        total: how many there will be; default: the length of ``items``, if it has one.
    """
    total = total if total is not None else len(items) if isinstance(items, Sized) else 0
    shown = _stack[-1] if _stack else None
    for done, item in enumerate(items):
        if shown is not None:
            shown._amounts = (done, total)
        yield item


def bar(console: "Console") -> "Progress":
    """How this project shows progress on a terminal; a task has the field ``rate``."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _innermost(outer: Waiting) -> Waiting:
    return _stack[-1] if _stack else outer
