"""Softmax over a vocabulary as a Triton kernel over logits in their own type, in operators that torch.compile keeps
whole: statistics in one pass, and softmax minus one-hot in the place of the logits in another, or both in one launch.

One program per row: statistics are those of each of ``BLOCK`` lanes until the end of the row, so that a block costs no
reduction.

Shapes: R rows · V ids here.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadeberta.ops.softmax_rows import Statistics

PASSES = {
    "megadeberta.softmax_statistics": (1, 0),
    "megadeberta.softmax_error_": (1, 1),
    "megadeberta.softmax_statistics_and_error_": (2, 1),
}
"""How often each operator reads and writes all logits."""
OPTIONS = {"BLOCK": 4096, "num_warps": 8}

_LOWEST = tl.constexpr(-3.4028234663852886e38)


class TritonRows:
    """See ``softmax_rows.SoftmaxRows``; on a GPU, or under the interpreter. Fp16 errors need a factor."""

    def __init__(self, logits: Tensor, columns: Tensor, *, overwrite: bool) -> None:
        self._logits, self._columns, self._overwrite = logits, columns, overwrite
        self._error: Tensor | None = None

    @staticmethod
    def keeps_error(dtype: torch.dtype) -> bool:
        """Not in fp16, which cannot hold a softmax over 100k entries before the loss scale is on it."""
        return dtype != torch.float16

    def statistics(self, *, with_error: bool) -> Statistics:
        """See ``SoftmaxRows``."""
        ops = torch.ops.megadeberta
        if not with_error:
            return Statistics(*ops.softmax_statistics(self._logits, self._columns))
        self._error, source = self._places()
        return Statistics(*ops.softmax_statistics_and_error_(self._error, source, self._columns))

    def error(self, statistics: Statistics, factor: Tensor | None = None) -> Tensor:
        """See ``SoftmaxRows``."""
        if self._error is None:
            self._error, source = self._places()
            best, total, _ = statistics
            torch.ops.megadeberta.softmax_error_(self._error, source, self._columns, best, total, factor)
        return self._error

    def _places(self) -> tuple[Tensor, Tensor | None]:
        """Where the error goes, and where the logits are if not in the same place."""
        return (self._logits, None) if self._overwrite else (torch.empty_like(self._logits), self._logits)


@triton.jit
def softmax_kernel(
    LOGITS, ERRORS, COLUMNS, BEST, TOTAL, TARGET, FACTOR, size, stride,
    STATISTICS: tl.constexpr, ERROR: tl.constexpr, SCALED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its statistics, and its error, which may take the place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.multiple_of(row * stride, ALIGNED)
    size = tl.multiple_of(size, ALIGNED)
    label = tl.load(COLUMNS + row)
    if STATISTICS:
        # Before the reductions: behind their barriers other warps may write an error in its place.
        target = tl.load(LOGITS + start + label, mask=label >= 0, other=0.0).to(tl.float32)
        highest = tl.full([BLOCK], _LOWEST, tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        for first in range(0, size, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            logits = tl.load(LOGITS + start + columns, mask=columns < size, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(highest, logits)
            sums = sums * tl.exp(highest - higher) + tl.exp(logits - higher)
            highest = higher
        best = tl.max(highest, 0)
        total = tl.sum(sums * tl.exp(highest - best), 0)
        tl.store(BEST + row, best)
        tl.store(TOTAL + row, total)
        tl.store(TARGET + row, target)
    else:
        best = tl.load(BEST + row)
        total = tl.load(TOTAL + row)
    if ERROR:
        scale = 1.0 / total
        for first in range(0, size, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < size
            logits = tl.load(LOGITS + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            error = tl.exp(logits - best) * scale - tl.where(columns == label, 1.0, 0.0)
            if SCALED:
                error = error * tl.load(FACTOR + row)
            tl.store(ERRORS + start + columns, error.to(ERRORS.dtype.element_ty), mask=inside)


def alignment(logits: Tensor) -> int:
    """Elements that start and end of every row of ``[R, V]`` are a multiple of: as many are read in one load."""
    return math.gcd(logits.size(1), logits.stride(0), 16)


def _launch(
    work: Tensor, source: Tensor | None, columns: Tensor, statistics: tuple[Tensor, ...], *,
    factor: Tensor | None = None, **parts: bool,
) -> None:  # fmt: skip
    logits = work if source is None else source
    if logits.size(0):
        softmax_kernel[(logits.size(0),)](
            logits, work, columns, *statistics, columns if factor is None else factor, logits.size(1), logits.stride(0),
            SCALED=factor is not None, ALIGNED=alignment(logits), **parts, **OPTIONS,
        )  # fmt: skip


def _empty_statistics(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best = logits.new_empty(logits.size(0), 1, dtype=torch.float32)
    return best, torch.empty_like(best), torch.empty_like(best)


@torch.library.custom_op("megadeberta::softmax_statistics", mutates_args=())
def _statistics(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, sum of exponentials and the label's logit, each fp32 ``[R, 1]``, of contiguous ``[R, V]``."""
    found = _empty_statistics(logits)
    _launch(logits, None, columns, found, STATISTICS=True, ERROR=False)
    return found


@torch.library.custom_op("megadeberta::softmax_error_", mutates_args=("work",))
def _error(
    work: Tensor, source: Tensor | None, columns: Tensor, best: Tensor, total: Tensor, factor: Tensor | None
) -> None:
    """``work`` becomes softmax minus one-hot, times ``factor`` ``[R, 1]``, of the logits in ``source`` or in itself."""
    best, total = best.contiguous(), total.contiguous()
    factor = None if factor is None else factor.contiguous()
    _launch(work, source, columns, (best, total, best), factor=factor, STATISTICS=False, ERROR=True)


@torch.library.custom_op("megadeberta::softmax_statistics_and_error_", mutates_args=("work",))
def _statistics_and_error(work: Tensor, source: Tensor | None, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in one launch."""
    found = _empty_statistics(work)
    _launch(work, source, columns, found, STATISTICS=True, ERROR=True)
    return found


@_statistics.register_fake
def _(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_statistics(logits)


@_error.register_fake
def _(work: Tensor, source: Tensor | None, columns: Tensor, best: Tensor, total: Tensor, factor: Tensor | None) -> None:
    return None


@_statistics_and_error.register_fake
def _(work: Tensor, source: Tensor | None, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_statistics(work)
