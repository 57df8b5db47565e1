"""What the benchmarks share: timing, bytes kept for backward, the rate of matrix products, and the chart."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


def interleave(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every variant, run in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def print_ratios(seconds: dict[str, list[float]], baseline: str, extra: dict[str, str] | None = None) -> None:
    """One line a variant: median seconds, and median and range of the ratios of neighbouring runs."""
    for name, values in seconds.items():
        ratios = [base / value for base, value in zip(seconds[baseline], values, strict=True)]
        note = (extra or {}).get(name, "")
        print(
            f"  {name:28s} {statistics.median(values):8.3f} s  {statistics.median(ratios):5.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f}){note}",
            flush=True,
        )


def device_seconds(run: Callable[[], object], device: torch.device, repeats: int, *, flush: bool = False) -> float:
    """Median seconds of ``run`` by CUDA events, after three runs that are not counted; on a CPU, of one run.

    Args:
        flush: write over the L2 cache before each run.
    """
    if device.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    scratch = torch.empty(2**28 if flush else 0, dtype=torch.int8, device=device)
    times = []
    for number in range(repeats + 3):
        scratch.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product: CPU time of this thread, or CUDA events."""
    size = GEMM_SIZE[device.type]
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    if device.type == "cpu":
        seconds = statistics.median(interleave({"product": lambda: left @ right}, 7)["product"])
    else:
        seconds = device_seconds(lambda: left @ right, device, 20)
    return 2 * size**3 / seconds


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """GiB that the block had on the GPU at most, over what was there before it; not a number on a CPU."""
    if device.type == "cpu":
        yield lambda: float("nan")
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield lambda: (torch.cuda.max_memory_allocated(device) - before) / 2**30


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the storages that autograd keeps inside the block, each once, parameters left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []  # keeps addresses from being used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(seen.values())


def draw_bars(path: str, panels: dict[str, dict[str, float]], unit: str) -> None:
    """One panel of horizontal bars a title, written to an image file."""
    import matplotlib.pyplot as plt

    height = sum(0.35 * len(bars) + 0.8 for bars in panels.values())
    figure, axes = plt.subplots(len(panels), squeeze=False, figsize=(8, height))
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        container = axis.barh(list(bars), list(bars.values()), color="tab:blue")
        axis.bar_label(container, fmt="%.3g", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{title}, {unit}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
