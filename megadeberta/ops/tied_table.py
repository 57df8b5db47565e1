"""The gradient of a table that is read by rows: summed in fp32 at least and in a fixed order, and one for both uses
where the table is multiplied whole at the output too.

A frequent row, [MASK] above all, has thousands of gradients in a micro batch: summed one by one in bf16 they lose some
percent, and atomics would add them in another order every time.

Shapes: V vocabulary · E embedding width · B batch · L length · M = B L.
"""

from typing import Any

import torch
from torch import Tensor

from megadeberta.ops.recycled_buffer import RecycledBuffer

_GRADIENTS = RecycledBuffer()


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

    def take(self) -> Tensor | None:
        """What was left, if anything was; the caller may write to it."""
        dense, self._dense = self._dense, None
        return dense


def lookup(table: Tensor, ids: Tensor, *, padding: int | None, tied: TiedGradient | None = None) -> Tensor:
    """Rows ``[..., E]`` of ``table`` ``[V, E]``; the row ``padding`` gets no gradient from here."""
    return _Lookup.apply(table, ids, padding, tied)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None, tied: TiedGradient | None) -> Tensor:
        ctx.size, ctx.padding, ctx.tied = table.size(0), padding, tied
        ctx.save_for_backward(ids)
        return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        dense = None if ctx.tied is None else ctx.tied.take()
        return _add_rows(dense, grad_rows.flatten(0, -2), ids.flatten(), ctx.size, ctx.padding), None, None, None


def _add_rows(dense: Tensor | None, rows: Tensor, ids: Tensor, size: int, padding: int | None) -> Tensor:
    """The gradient ``[V, E]``: ``dense`` with the gradients ``rows`` ``[M, E]`` of its rows ``ids`` ``[M]`` added."""
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64):
        dense = _zeros(size, like=rows) if dense is None else dense
        if padding is not None:
            rows = rows * (ids != padding).unsqueeze(-1)
        return dense.index_add_(0, ids, rows)  # row after row
    precise = rows.dtype if rows.dtype == torch.float64 else torch.float32
    none = -1
    added = torch.ops.aten.embedding_dense_backward(
        rows.to(precise), ids, size, none if padding is None else padding, False
    )
    return added.to(rows.dtype) if dense is None else dense.add_(added)


def _zeros(size: int, *, like: Tensor) -> Tensor:
    """``[V, E]``, where possible in pages that the process has already."""
    found = _GRADIENTS.take(size, like.size(1), like=like)
    return like.new_zeros(size, like.size(1)) if found is None else found.zero_()
