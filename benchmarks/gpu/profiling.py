"""What the device did in a stretch of work: kernels, idle gaps, copies, launches and waits of the host."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TOP_KERNELS, TOP_GAPS, SHORTEST_GAP_US = 20, 5, 5.0
LAUNCHES = ("LaunchKernel", "GraphLaunch")
WAITS = ("Synchronize", "_local_scalar_dense")
"""In the names of host events: calls of the runtime that wait, and torch's reading of a number from the device."""


@dataclass(frozen=True)
class Event:
    """Something that took time, on the device or on the host; microseconds."""

    name: str
    start: float
    end: float
    on_device: bool

    @property
    def length(self) -> float:
        return self.end - self.start


def record(run: Callable[[], object], device: torch.device) -> list[Event]:
    """The events of one run. On a CPU the innermost torch operations stand for kernels."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()  # the last wait of the record is this one
    events = []
    for event in profiler.events():
        if getattr(event, "is_user_annotation", False):  # it spans what other events are
            continue
        on_device = event.device_type != DeviceType.CPU if device.type == "cuda" else not event.cpu_children
        events.append(Event(event.name, event.time_range.start, event.time_range.end, on_device))
    return events


def summarise(events: Sequence[Event], *, runs: int = 1) -> dict[str, Any]:
    """Times in milliseconds: of the device busy and idle between its first and last event, by kernel, and of waits.

    Args:
        runs: how often the work was done; times and counts are those of one, gaps the longest of all.
    """
    device = sorted((event for event in events if event.on_device), key=lambda event: event.start)
    host = [event for event in events if not event.on_device]
    gaps, busy, last = [], 0.0, None
    for event in device:
        if last is not None and event.start - last.end >= SHORTEST_GAP_US:
            gaps.append({"ms": (event.start - last.end) / 1e3, "after": last.name[:80], "before": event.name[:80]})
        busy += max(0.0, event.end - (event.start if last is None else max(event.start, last.end)))
        if last is None or event.end > last.end:
            last = event
    span = 0.0 if last is None else last.end - device[0].start
    copies = [event for event in device if event.name.startswith(("Memcpy", "Memset"))]
    kernels = [event for event in device if not event.name.startswith(("Memcpy", "Memset"))]
    waits = [event for event in host if any(word in event.name for word in WAITS)]
    launches = sum(any(word in event.name for word in LAUNCHES) for event in host)
    return {
        "span_ms": span / 1e3 / runs,
        "busy_ms": busy / 1e3 / runs,
        "idle": (span - busy) / span if span else 0.0,
        "kernel_count": len(kernels) / runs,
        "kernels": [row | {"share": row["ms"] * runs * 1e3 / span} for row in _by_name(kernels, runs)[:TOP_KERNELS]],
        "gap_count": len(gaps) / runs,
        "gaps": sorted(gaps, key=lambda gap: -gap["ms"])[:TOP_GAPS],
        "copies": _by_name(copies, runs),
        "launches": launches / runs,
        "waits": _by_name(waits, runs),
    }


def waiting_lines(run: Callable[[], object]) -> dict[str, int]:
    """Source lines at which the host waited for the device during ``run``, and how often; torch knows its own waits."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{_short(w.filename)}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return dict(places.most_common())


def _by_name(events: Sequence[Event], runs: int) -> list[dict[str, Any]]:
    """Count and time of each name in one run, the longest time first."""
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in events:
        total[event.name] += event.length
        count[event.name] += 1
    return [
        {"name": name[:120], "count": count[name] / runs, "ms": time / 1e3 / runs} for name, time in total.most_common()
    ]


def _short(path: str) -> str:
    return "/".join(path.split("/")[-3:])
