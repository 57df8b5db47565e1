"""What the benchmarks share: timing, bytes kept for backward, the rate of matrix products, and the chart."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    scratch = _flush_buffer(device) if flush else torch.empty(0, device=device)
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats + 3)]
    for start, end in pairs:  # without a wait between them: the host runs ahead, as it does in training
        scratch.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs[3:])


@lru_cache(maxsize=1)
def _flush_buffer(device: torch.device) -> Tensor:
    """Larger than any L2 cache; made once, so that it is in no peak of what is timed."""
    return torch.empty(2**28, dtype=torch.int8, device=device)


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


class KeptTensors(TorchDispatchMode):
    """Counts what is made inside the block and still there when it is asked: after a forward pass, what is kept for the
    backward pass. (Hooks of saved tensors see nothing of a block that has hooks of its own.)"""

    def __init__(self, wanted: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        super().__init__()
        self._wanted = wanted
        self._made: dict[int, tuple[StorageWeakRef, int, tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and self._wanted(tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # while it is held, no other storage gets its address
                if reference.cdata not in given:  # a view is of what is known, or of what was there before the block
                    self._made[reference.cdata] = (reference, storage.nbytes(), tuple(tensor.shape))
        return result

    def bytes(self) -> int:
        return sum(size for reference, size, _ in self._made.values() if not reference.expired())

    def shapes(self) -> set[tuple[int, ...]]:
        return {shape for reference, _, shape in self._made.values() if not reference.expired()}


def draw_bars(path: str, panels: dict[str, dict[str, float]], unit: str = "") -> None:
    """One panel of horizontal bars a title, written to an image file. ``unit``: of all panels, if they share one."""
    import matplotlib.pyplot as plt

    height = sum(0.35 * len(bars) + 0.8 for bars in panels.values())
    figure, axes = plt.subplots(len(panels), squeeze=False, figsize=(8, height))
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        container = axis.barh(list(bars), list(bars.values()), color="tab:blue")
        axis.bar_label(container, fmt="%.3g", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{title}, {unit}" if unit else title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
