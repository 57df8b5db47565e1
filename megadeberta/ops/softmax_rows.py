"""Softmax over a vocabulary, or a shard of it, of one chunk of logits: statistics, then softmax minus one-hot.

Shapes: R rows · V ids here.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megadeberta.ops.logits import TRITON
from megadeberta.ops.recycled_buffer import RecycledBuffer

_ELSEWHERE = -1
_EXPONENTIALS = RecycledBuffer()


class Statistics(NamedTuple):
    """Of each row ``[R, 1]``, in fp32 or better."""

    best: Tensor
    """Largest logit."""
    total: Tensor
    """Sum of the exponentials, less the largest logit."""
    target: Tensor
    """The label's logit, 0 where another shard has it."""


class SoftmaxRows(Protocol):
    """What computes with one chunk of logits ``[R, V]``, which it may overwrite unless told otherwise."""

    def __init__(self, logits: Tensor, columns: Tensor, *, overwrite: bool) -> None:
        """
        Args:
            columns: ``[R]`` int64 of ``label_columns``.
        """

    def statistics(self, *, with_error: bool) -> Statistics:
        """Of these logits.

        Args:
            with_error: ``error`` is asked for next, with these statistics.
        """
        ...

    def error(self, statistics: Statistics, factor: Tensor | None = None) -> Tensor:
        """Softmax minus one-hot, ``[R, V]``, times ``factor`` ``[R, 1]``, in the type of the logits.

        Without a factor fp16 is not enough for it: see ``keeps_error``.

        Args:
            statistics: of the whole vocabulary.
        """
        ...

    @staticmethod
    def keeps_error(dtype: torch.dtype) -> bool:
        """Whether ``error`` without a factor can be kept for logits of that type."""
        ...


def label_columns(labels: Tensor, ids: range) -> Tensor:
    """The column of each label ``[R]`` among ``ids``; negative where it is not among them."""
    is_here = (labels >= ids.start) & (labels < ids.stop)
    return torch.where(is_here, labels - ids.start, _ELSEWHERE)


def softmax_rows(implementation: str, dtype: torch.dtype) -> type[SoftmaxRows]:
    """What computes logits of that type; the kernels have no fp64."""
    if implementation != TRITON or dtype == torch.float64:
        return TorchRows
    # Triton is an optional dependency, and importing it takes a second.
    from megadeberta.ops.triton_softmax_rows import TritonRows

    return TritonRows


class TorchRows:
    """Plain torch: the definition of correct."""

    def __init__(self, logits: Tensor, columns: Tensor, *, overwrite: bool) -> None:
        self._dtype = logits.dtype
        self._work = logits if logits.dtype == torch.float64 else logits.float()
        self._overwrite = overwrite or self._work is not logits
        self._is_here = (columns >= 0).unsqueeze(1)  # [R, 1]
        self._columns = columns.clamp_min(0).unsqueeze(1)
        self._best: Tensor | None = None

    @staticmethod
    def keeps_error(dtype: torch.dtype) -> bool:
        """In fp32 where fp16 would not do."""
        return True

    def statistics(self, *, with_error: bool) -> Statistics:
        """See ``SoftmaxRows``."""
        best = self._work.amax(1, keepdim=True)
        target = self._work.gather(1, self._columns).masked_fill(~self._is_here, 0.0)
        return Statistics(best, self._exponentiate(best).sum(1, keepdim=True), target)

    def error(self, statistics: Statistics, factor: Tensor | None = None) -> Tensor:
        """See ``SoftmaxRows``; in fp32 for logits in fp16 without a factor."""
        if self._best is None:
            self._exponentiate(statistics.best)
        assert self._best is not None
        error = self._work.mul_((self._best - statistics.best).exp_().div_(statistics.total))
        error.scatter_add_(1, self._columns, -self._is_here.to(error.dtype))
        if factor is not None:
            return error.mul_(factor).to(self._dtype)
        # A softmax over 100k entries has values that fp16 cannot hold before the loss scale is on them.
        return error if self._dtype == torch.float16 else error.to(self._dtype)

    def _exponentiate(self, best: Tensor) -> Tensor:
        """The logits become their exponentials, less ``best``."""
        out = self._work if self._overwrite else _EXPONENTIALS.take(*self._work.shape, like=self._work)
        self._work, self._best = torch.sub(self._work, best, out=out).exp_(), best
        return self._work
