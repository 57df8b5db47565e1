"""One gradient for a table that is read by rows at the input and multiplied whole at the output.

Shapes: V vocabulary · E embedding width · B batch · L length.
"""

from typing import Any

import torch
from torch import Tensor


class TiedGradient:
    """Carries the output side's gradient of the table to the input side, within one backward pass.

    Autograd would make a second dense ``[V, E]`` gradient, nearly all zeros, and a third one for the sum of both: a
    quarter of a small CPU step. The input side's backward comes last, as everything depends on it, so it adds its few
    rows to what the output side left here.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._dense: Tensor | None = None

    def of(self, weight: Tensor) -> "TiedGradient | None":
        """Itself if ``weight`` is the table; a decoder with a weight of its own leaves nothing here."""
        return self if weight is self._table else None

    def leave(self, gradient: Tensor) -> None:
        """Hand over the gradient ``[V, E]`` of the output side, which then returns none itself."""
        self._dense = gradient if self._dense is None else self._dense + gradient

    def take(self) -> Tensor:
        """What was left, or zeros; the caller may write to it."""
        dense, self._dense = self._dense, None
        return torch.zeros_like(self._table) if dense is None else dense


def lookup(table: Tensor, ids: Tensor, *, padding: int | None, tied: TiedGradient) -> Tensor:
    """Rows ``[B, L, E]`` of ``table`` ``[V, E]``; the row ``padding`` gets no gradient from here."""
    return _Lookup.apply(table, ids, padding, tied)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None, tied: TiedGradient) -> Tensor:
        ctx.padding, ctx.tied = padding, tied
        ctx.save_for_backward(ids)
        return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        gradient = ctx.tied.take()
        if ctx.padding is not None:
            grad_rows = grad_rows * (ids != ctx.padding).unsqueeze(-1)
        gradient.index_add_(0, ids.flatten(), grad_rows.flatten(0, -2))
        return gradient, None, None, None
