"""Where the time of a step goes, measured without waiting for the device.

On a GPU a phase is the time between two events on the stream that computes; they are read when the losses of the step
have been read, and then lie behind it. On a CPU, and for what the host does, it is the time by the clock.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.profiler import record_function

Item = TypeVar("Item")

DATA, FORWARD, BACKWARD, UPDATE, EXCHANGE = "data", "forward", "backward", "update", "exchange"
"""The host's wait for the loader; the passes; the optimizer; of a pipeline, what passes between two stages."""


@dataclass(frozen=True)
class StepPhases:
    """The phases of one step, of which the device may still be busy with some."""

    on_host: dict[str, float] = field(default_factory=dict)
    """Seconds by phase."""
    on_device: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Phase, and the events around it."""

    def seconds(self) -> dict[str, float]:
        """By phase. Never waits: what the device has not done yet is left out."""
        found = dict(self.on_host)
        for name, begin, end in self.on_device:
            if end.query():
                found[name] = found.get(name, 0.0) + begin.elapsed_time(end) / 1e3
        return found


class PhaseClock:
    """Measures the phases of the steps of one rank, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._current = StepPhases()
        self.names_phases = False
        """Whether a profiler that runs gets the names of the phases."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is launched in here counts as ``name``; several times in a step add up."""
        with record_function(name) if self.names_phases else nullcontext():
            if self._uses_events:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                yield
                end.record()
                self._current.on_device.append((name, begin, end))
                return
            started = time.perf_counter()
            yield
            self._add(name, started)

    def waited_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the host's wait for each counts as data of the step that follows."""
        source = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._add(DATA, started)
            yield item

    def take(self) -> StepPhases:
        """What has been measured since the last call."""
        taken, self._current = self._current, StepPhases()
        return taken

    def _add(self, name: str, started: float) -> None:
        on_host = self._current.on_host
        on_host[name] = on_host.get(name, 0.0) + time.perf_counter() - started
