"""What this rank is doing, told to the launcher once a second by a thread of its own; no collective is needed.

A line on standard error, which `megadeberta launch` reads and keeps to itself, here and over ssh. It says in which
phase of which step the rank is, for how long, and how long its steps have kept it busy by itself. A rank that is
stopped, or whose interpreter is held, writes none: that is a message too.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

HEARTBEAT_VARIABLE = "MEGADEBERTA_HEARTBEAT"
"""Set by a launcher that reads the lines."""
STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank write the stacks of its threads to standard error."""
PREFIX = "megadeberta-beat "
_SLOWER_FROM = 128
"""Ranks of a job from which on the lines become rarer, so that the launcher reads about as many a second."""


class Phase(IntEnum):
    """What a rank does, in the order of the loop: of ranks in one step, the first of these is furthest behind."""

    START = 0
    DATA = 1
    COMPILE = 2
    STEP = 3
    EVALUATE = 4
    SAVE = 5
    END = 6


@dataclass(frozen=True)
class Beat:
    """One line of a rank."""

    rank: int
    phase: Phase
    step: int
    """Number of the step that the phase belongs to; that of the last one done while it starts."""
    seconds: float
    """How long it has been in this phase of this step."""
    steps: int
    """Finished since it was started."""
    busy: float
    """Seconds for which these steps kept the rank itself at work: waiting for others is not in it."""
    data: float
    """Seconds for which they waited for their batches."""

    def encode(self) -> str:
        """The line, without its end."""
        numbers = f"{self.seconds:.1f} {self.steps} {self.busy:.4f} {self.data:.4f}"
        return f"{PREFIX}{self.rank} {self.phase.name} {self.step} {numbers}"

    @classmethod
    def parse(cls, line: str) -> "Beat | None":
        """The beat in a line of standard error, whatever stands before it; None for another line."""
        _, found, text = line.partition(PREFIX)
        words = text.split()
        if not found or len(words) != 7 or words[1] not in Phase.__members__:
            return None
        try:
            seconds, busy, data = float(words[3]), float(words[5]), float(words[6])
            return cls(int(words[0]), Phase[words[1]], int(words[2]), seconds, int(words[4]), busy, data)
        except ValueError:
            return None


def beat_seconds(world_size: int) -> float:
    """Pause between two lines of a rank."""
    return max(1.0, world_size / _SLOWER_FROM)


class _Numbered(Protocol):
    @property
    def step(self) -> int: ...


_Item = TypeVar("_Item", bound=_Numbered)


class Heartbeat:
    """Says where the loop is; silent until ``start``."""

    def __init__(self, rank: int = 0, *, pause: float = 1.0) -> None:
        self._rank, self._pause = rank, pause
        self._place: tuple[Phase, int] = (Phase.START, 0)
        self._steps, self._busy, self._data = 0, 0.0, 0.0
        self._compile_steps = 0
        self._busy_at: float | None = None
        self._clock: Clock | None = None
        self._told = threading.Lock()
        self._is_read = False

    def start(self, environ: Mapping[str, str]) -> None:
        """From the main thread, early: stacks on a signal, and lines if somebody reads them."""
        faulthandler.register(STACKS_SIGNAL, file=sys.__stderr__ or 2, all_threads=True)
        self._is_read = HEARTBEAT_VARIABLE in environ
        if self._is_read:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def measure(self, clock: "Clock | None", *, compile_steps: int) -> None:
        """Before the first step: what measures this rank's own work, and how many steps may compile something."""
        self._clock, self._compile_steps = clock, compile_steps

    def end(self) -> None:
        """The last line: from here on silence means nothing, however long the launcher takes to hear of the end."""
        with self._told:
            self._place = (Phase.END, self._place[1])
            if self._is_read:
                self._write(0.0)

    def worked(self, seconds: float) -> None:
        """What no clock of the host sees: work of this rank's device in a step."""
        self._busy += seconds

    def enter(self, phase: Phase, step: int) -> None:
        """The loop goes on to this phase of step ``step``."""
        if self._place[0] in (Phase.STEP, Phase.COMPILE):
            self._steps += 1
            if self._busy_at is not None and self._clock is not None:
                self._busy += self._clock() - self._busy_at
        if phase is Phase.STEP:
            self._busy_at = self._clock() if self._clock is not None else None
            if self._steps < self._compile_steps:
                phase = Phase.COMPILE
        self._place = (phase, step)

    def steps(self, items: Iterator[_Item], *, first: int) -> Iterator[_Item]:
        """The items: one for each step, ``first`` the number of the first. The wait for one is the data's."""
        number = first
        while True:
            self.enter(Phase.DATA, number)
            asked = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            self._data += time.monotonic() - asked
            self.enter(Phase.STEP, item.step + 1)
            yield item
            number = item.step + 2

    def _run(self) -> None:
        """Counted in pauses that passed here and not by a clock: a job that was suspended has not been idle."""
        last, pauses = None, 0
        while True:
            with self._told:
                place = self._place
                pauses = pauses + 1 if place is last else 0
                last = place
                self._write(pauses * self._pause)
            time.sleep(self._pause)

    def _write(self, seconds: float) -> None:
        beat = Beat(self._rank, *self._place, seconds, self._steps, self._busy, self._data)
        with suppress(OSError):  # nobody reads any more
            os.write(2, beat.encode().encode() + b"\n")


class Clock(Protocol):
    """Seconds for which this rank has been at work by itself."""

    def __call__(self) -> float: ...


def host_clock() -> Clock | None:
    """Of the calling thread: seconds on a core and waiting for one, from the kernel; None where it does not tell.

    Blocked in a collective, on a disk or for a worker is neither. Only for work on the CPU: a host that waits for its
    GPU may spin.
    """
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

    def read() -> float:
        on_core, waiting, _ = os.pread(file, 100, 0).split()
        return (int(on_core) + int(waiting)) / 1e9

    return read
