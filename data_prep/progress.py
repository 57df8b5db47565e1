"""Progress of a preparation: a bar on a terminal, a plain line every few seconds in a log."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID

from megadeberta.config.terminal import print_line
from megadeberta.config.waiting import bar

_LOG_SECONDS = 10.0


class Stages:
    """Shows one stage at a time; amounts are bytes of the corpus (or tokens, when merging)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = bar(console)
        self._task: TaskID | None = None
        self._name, self._unit, self._total, self._done, self._tokens = "", "MB", 0, 0, 0
        self._began = self._logged = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        print_line(self._console, line)

    def begin(self, name: str, *, total: int | None, unit: str = "MB") -> None:
        """Start a stage of ``total`` bytes or tokens; None = nothing to count."""
        self._name, self._unit, self._total, self._done, self._tokens = name, unit, total or 0, 0, 0
        self._began = self._logged = time.monotonic()
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, rate="")
        else:
            self._console.print(f"{name} …", markup=False, highlight=False)

    def advance(self, amount: int, *, tokens: int = 0) -> None:
        """Count ``amount`` as done, which gave ``tokens`` tokens."""
        self._done += amount
        self._tokens += tokens
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=amount, rate=self._rate())
        elif time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            line = f"{self._name}: {self._fraction()}{self._rate()}{self._time_left()}"
            self._console.print(line, markup=False, highlight=False)

    def _fraction(self) -> str:
        return f"{self._done / self._total:.0%}, " if self._total else ""

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._done / 1e6 / seconds:.1f} {self._unit}/s"
        return f"{rate}, {self._tokens / 1e3 / seconds:,.0f}k tokens/s" if self._tokens else rate

    def _time_left(self) -> str:
        if not 0 < self._done <= self._total:
            return ""
        seconds = (time.monotonic() - self._began) * (self._total - self._done) / self._done
        return f", {timedelta(seconds=round(seconds))} left"
