"""Decoder and cross entropy in one: the logits never exist twice, and on long batches not all at once.

Shapes: M masked rows · R rows of a chunk · E embedding width · V vocabulary, or the ids of one shard of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.logits import resolve, row_chunks
from megadeberta.ops.recycled_buffer import RecycledBuffer
from megadeberta.ops.softmax_rows import SoftmaxRows, Statistics, label_columns, softmax_rows
from megadeberta.ops.tied_table import TiedGradient

_LOGITS, _TABLE_GRADIENTS = RecycledBuffer(), RecycledBuffer()
_CPU_COLUMNS = 1024
"""Ids of one product of the decoder on a CPU: whole, a product with few rows has three quarters of the rate."""


class TokenLoss(NamedTuple):
    """The loss of target rows."""

    loss_sum: Tensor
    """Cross entropy in fp32 or better, summed over the rows with a label."""
    hits: Tensor
    """Rows whose label has the highest logit (a tie counts)."""
    logits: Tensor | None
    """``[M, V]`` as the decoder computed them, without gradient, if they were asked for."""


class Shards(Protocol):
    """The other shards of a vocabulary that is divided among ranks."""

    @property
    def ids(self) -> range:
        """Of this shard."""
        ...

    @property
    def largest(self) -> int:
        """Ids of the largest shard, so that all ranks make the same chunks."""
        ...

    def combine(self, mine: Statistics) -> Statistics:
        """Those of all shards. A collective."""
        ...

    def start_sum(self, gradient: Tensor) -> Callable[[], Tensor]:
        """Begins the sum over all shards; what is returned waits for it. A collective."""
        ...


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    tied: TiedGradient | None = None,
    shards: Shards | None = None,
    implementation: str = AUTO,
    keep_logits: bool = False,
) -> TokenLoss:
    """Cross entropy of ``hidden @ weight.T + bias``.

    With the kernels (``implementation`` "triton") a pass over the logits is one in their own type, and with few enough
    of them (``logits.KERNEL_BYTES``) the softmax minus one-hot takes their place and is kept for backward.

    Args:
        hidden: ``[M, E]``.
        weight: ``[V, E]``.
        bias: ``[V]``.
        labels: ``[M]``, 0 = no target.
        tied: takes the gradient of ``weight`` to its other use; then this one returns none.
        shards: the others, where ``weight`` and ``bias`` are one of several.
        implementation: a name of ``logits.IMPLEMENTATIONS``, or "auto": the one for the device.
        keep_logits: return the logits too, for a draw.
    """
    name = resolve(implementation, hidden.device.type)
    call = _Call(tied, shards, name, keep_logits, range(weight.size(0)) if shards is None else shards.ids)
    return TokenLoss(*_MaskedCrossEntropy.apply(hidden, weight, bias, labels, call))


@dataclass(frozen=True)
class _Call:
    tied: TiedGradient | None
    shards: Shards | None
    implementation: str
    keep_logits: bool
    ids: range

    def chunks(self, hidden: Tensor, weight: Tensor) -> list[slice]:
        columns = weight.size(0) if self.shards is None else self.shards.largest
        size = weight.element_size()
        return row_chunks(hidden.size(0), columns, implementation=self.implementation, element_bytes=size)

    def combine(self, mine: Statistics) -> Statistics:
        return mine if self.shards is None else self.shards.combine(mine)

    def start_sum(self, gradient: Tensor) -> Callable[[], Tensor]:
        return (lambda: gradient) if self.shards is None else self.shards.start_sum(gradient)


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # a gradient of zeros for the logits would be as large as they are
        chunks, columns = call.chunks(hidden, weight), label_columns(labels, call.ids)
        rows_of = softmax_rows(call.implementation, weight.dtype)
        keeps_error = len(chunks) == 1 and any(ctx.needs_input_grad) and rows_of.keeps_error(weight.dtype)
        done = [
            _forward_chunk(hidden[rows], weight, bias, columns[rows], rows_of, call, keeps_error) for rows in chunks
        ]
        found, errors, logits = zip(*done, strict=True)
        whole = Statistics(*(_join(parts) for parts in zip(*found, strict=True)))
        is_target = labels != 0
        loss_sum = ((whole.total.log() + whole.best - whole.target).squeeze(1) * is_target).sum()
        hits = ((whole.target >= whole.best).squeeze(1) & is_target).sum()
        ctx.chunks, ctx.call, ctx.rows_of = chunks, call, rows_of
        ctx.save_for_backward(hidden, weight, bias, labels, columns, *whole, errors[0])
        joined = _join(logits) if call.keep_logits else None
        ctx.mark_non_differentiable(*(output for output in (hits, joined) if output is not None))
        return loss_sum, hits, joined

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 5
        hidden, weight, bias, labels, columns, *statistics, kept_error = ctx.saved_tensors
        factor = (grad_loss * (labels != 0)).unsqueeze(1)  # [M, 1]
        summing = []
        table = None
        for rows in ctx.chunks:
            if kept_error is not None:
                error = (kept_error * factor).to(weight.dtype) if weight.dtype == torch.float16 else kept_error
            else:
                chunk = ctx.rows_of(decode(hidden[rows], weight, bias), columns[rows], overwrite=True)
                part = Statistics(*(tensor[rows] for tensor in statistics))
                error = chunk.error(part, factor[rows] if weight.dtype == torch.float16 else None)
            # The factor goes onto the narrow tensors: scaling the error would be one more pass over R x V. In fp16 it
            # must not, as the loss scale is in it.
            narrow = None if weight.dtype == torch.float16 else factor[rows].to(weight.dtype)
            summing.append(ctx.call.start_sum(_hidden_gradient(error, narrow, weight)))
            table = _table_gradients(error, narrow, hidden[rows], so_far=table)
        assert table is not None  # one chunk at least
        grad_weight, grad_bias = table
        grad_hidden = _join([wait() for wait in summing])
        if ctx.call.tied is None:
            return grad_hidden, grad_weight, grad_bias, None, None
        ctx.call.tied.leave(grad_weight)
        return grad_hidden, None, grad_bias, None, None


def _forward_chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    columns: Tensor,
    rows_of: type[SoftmaxRows],
    call: _Call,
    keeps_error: bool,
) -> tuple[Statistics, Tensor | None, Tensor | None]:
    """Statistics over the whole vocabulary; and the error and the logits, if they are to be kept."""
    logits = decode(hidden, weight, bias)
    chunk = rows_of(logits, columns, overwrite=not call.keep_logits)
    found = call.combine(chunk.statistics(with_error=keeps_error and call.shards is None))
    return found, chunk.error(found) if keeps_error else None, logits if call.keep_logits else None


def decode(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits ``[R, V]``."""
    out = _LOGITS.take(hidden.size(0), weight.size(0), like=weight)
    if out is None:
        return torch.addmm(bias, hidden, weight.mT)
    for start in range(0, weight.size(0), _CPU_COLUMNS):
        ids = slice(start, start + _CPU_COLUMNS)
        torch.addmm(bias[ids], hidden, weight[ids].mT, out=out[:, ids])
    return out


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all chunks; of one chunk they are no copy."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _hidden_gradient(error: Tensor, factor: Tensor | None, weight: Tensor) -> Tensor:
    """``[R, E]``."""
    grad = error @ weight
    return grad if factor is None else grad * factor


def _table_gradients(
    error: Tensor, factor: Tensor | None, hidden: Tensor, *, so_far: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Of the weight ``[V, E]`` and the bias ``[V]``, added to those of earlier chunks in place."""
    if factor is None:
        bias = error.float().sum(0).to(error.dtype)
    else:
        hidden = hidden * factor
        bias = (error.mT @ factor).squeeze(1)
    if so_far is not None:
        return so_far[0].addmm_(error.mT, hidden), so_far[1].add_(bias)
    buffer = _TABLE_GRADIENTS.take(error.size(1), hidden.size(1), like=error)
    return torch.mm(error.mT, hidden, out=buffer), bias
