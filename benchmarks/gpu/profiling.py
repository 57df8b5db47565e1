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


def summarise(events: Sequence[Event]) -> dict[str, Any]:
    """Times in milliseconds: of the device busy and idle between its first and last event, by kernel, and of waits."""
    device = sorted((event for event in events if event.on_device), key=lambda event: event.start)
    host = [event for event in events if not event.on_device]
    if not device:
        return {"busy_ms": 0.0, "idle_ms": 0.0, "kernels": [], "gaps": [], "copies": {}, "launches": 0, "waits": {}}
    gaps, busy_until, last = [], device[0].start, device[0]
    for event in device:
        if event.start - busy_until >= SHORTEST_GAP_US:
            gaps.append({"ms": (event.start - busy_until) / 1e3, "after": last.name[:80], "before": event.name[:80]})
        if event.end > busy_until:
            busy_until, last = event.end, event
    span, busy = busy_until - device[0].start, _union(device)
    is_copy = [event.name.startswith(("Memcpy", "Memset")) for event in device]
    return {
        "span_ms": span / 1e3,
        "busy_ms": busy / 1e3,
        "idle_ms": (span - busy) / 1e3,
        "kernel_count": is_copy.count(False),
        "kernels": _by_name([event for event, copy in zip(device, is_copy, strict=True) if not copy], span),
        "gap_count": len(gaps),
        "gaps": sorted(gaps, key=lambda gap: -gap["ms"])[:TOP_GAPS],
        "copies": dict(Counter(event.name for event, copy in zip(device, is_copy, strict=True) if copy)),
        "launches": sum(any(word in event.name for word in LAUNCHES) for event in host),
        "waits": _waits(host),
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


def _union(ordered: Sequence[Event]) -> float:
    total, until = 0.0, float("-inf")
    for event in ordered:
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total


def _by_name(kernels: Sequence[Event], span: float) -> list[dict[str, Any]]:
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in kernels:
        total[event.name] += event.length
        count[event.name] += 1
    return [
        {"name": name[:120], "count": count[name], "ms": time / 1e3, "share": time / span if span else 0.0}
        for name, time in total.most_common(TOP_KERNELS)
    ]


def _waits(host: Sequence[Event]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for event in host:
        if any(word in event.name for word in WAITS):
            entry = found.setdefault(event.name, {"count": 0, "ms": 0.0})
            entry["count"] += 1
            entry["ms"] += event.length / 1e3
    return found


def _short(path: str) -> str:
    return "/".join(path.split("/")[-3:])
