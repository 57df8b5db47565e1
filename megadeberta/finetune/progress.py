"""One line per epoch on standard error, and a bar of the steps between them on a terminal."""

import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from megadeberta.config.terminal import line_width, wrap_items


class Progress:
    """Of one run; the bar is only seen where a person looks."""

    def __init__(self, name: str, epochs: int, *, quiet: bool = False) -> None:
        """
        Args:
            quiet: says nothing, as ranks other than 0.
        """
        self._name, self._epochs, self._quiet = name, epochs, quiet
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._steps: TaskID | None = None

    def start(self, steps: int) -> None:
        """Show the bar."""
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

    def epoch(self, number: float, loss: float, metrics: Mapping[str, float], seconds: float, *, best: bool) -> None:
        """An epoch is done."""
        if self._quiet:
            return
        scores = [f"{name} {value:.4f}" for name, value in metrics.items()]
        items = [f"{self._name} epoch {number:g}/{self._epochs}", f"loss {loss:.4f}", *scores, *["(best)"] * best]
        line = wrap_items([*items, f"{seconds:.0f} s"], line_width(os.environ))
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
