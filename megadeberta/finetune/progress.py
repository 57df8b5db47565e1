"""One line per epoch on standard error; between them a bar of the steps on a terminal, else lines now and then."""

import os
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megadeberta.config.terminal import line_width, wrap_items
from megadeberta.config.waiting import pause_after


class Progress:
    """Of one run; the bar is only seen on a terminal."""

    def __init__(self, name: str, epochs: int, *, quiet: bool = False) -> None:
        """
        Args:
            quiet: says nothing, as ranks other than 0.
        """
        self._name, self._epochs, self._quiet = name, epochs, quiet
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._steps: TaskID | None = None
        self._total = 0
        self._started = self._shown = 0.0

    def start(self, steps: int) -> None:
        """Show the bar."""
        self._total = steps
        self._started = self._shown = time.monotonic()
        if self._quiet or not self._console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, transient=True)
        self._steps = self._bar.add_task(self._name, total=steps)
        self._bar.start()

    def step(self, number: int) -> None:
        """So many steps are done."""
        if self._bar is not None and self._steps is not None:
            self._bar.update(self._steps, completed=number)
        elif not self._quiet and (now := time.monotonic()) - self._shown >= pause_after(now - self._started):
            self._print(f"{self._name} step {number} of {self._total}")

    def epoch(self, number: float, loss: float, metrics: Mapping[str, float], seconds: float, *, best: bool) -> None:
        """An epoch is done."""
        if self._quiet:
            return
        scores = [f"{name} {value:.4f}" for name, value in metrics.items()]
        items = [f"{self._name} epoch {number:g}/{self._epochs}", f"loss {loss:.4f}", *scores, *["(best)"] * best]
        self._print(wrap_items([*items, f"{seconds:.0f} s"], line_width(os.environ)))

    def _print(self, line: str) -> None:
        self._shown = time.monotonic()
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
