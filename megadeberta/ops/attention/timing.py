"""How long a function takes on a device."""

import statistics
import time
from collections.abc import Callable

import torch

_ENOUGH_SECONDS, _FEWEST, _MOST = 0.2, 5, 30
"""How long, and how often, a function is timed on a GPU; on a CPU it is the fewest times."""

Measure = Callable[[Callable[[], object]], float]
"""Seconds that a function takes, other than for the first time."""


def stopwatch(device: torch.device) -> Measure:
    """The median of a few runs: on a GPU by its own clock, elsewhere by the wall's."""
    return _gpu_seconds if device.type == "cuda" else _cpu_seconds


def _gpu_seconds(run: Callable[[], object]) -> float:
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    times = int(_ENOUGH_SECONDS / max(time.perf_counter() - started, 1e-9))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(min(max(times, _FEWEST), _MOST))]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1000


def _cpu_seconds(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(_FEWEST):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
