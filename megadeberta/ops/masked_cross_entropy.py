"""Decoder and cross entropy in one: the logits never exist twice, and on long batches not all at once.

Shapes: M masked rows · R rows of a chunk · E embedding width · V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from megadeberta.ops.logit_chunks import row_chunks
from megadeberta.ops.recycled_buffer import RecycledBuffer
from megadeberta.ops.tied_table import TiedGradient

_LOGITS, _TABLE_GRADIENTS = RecycledBuffer(), RecycledBuffer()


def masked_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, tied: TiedGradient | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of ``hidden @ weight.T + bias`` in fp32 or better, summed over the rows with a label.

    Args:
        hidden: ``[M, E]``.
        weight: ``[V, E]``.
        bias: ``[V]``.
        labels: ``[M]``, 0 = no target.
        tied: takes the gradient of ``weight`` to its other use; then this one returns none.

    Returns:
        Loss sum, and the number of rows whose label has the highest logit (a tie counts).
    """
    return _MaskedCrossEntropy.apply(hidden, weight, bias, labels, tied)


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, tied: TiedGradient | None
    ) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss_sum = torch.zeros((), dtype=precise, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        chunks = row_chunks(hidden.size(0), weight.size(0))
        error = None
        for rows in chunks:
            loss, hits, error = _chunk_loss(hidden[rows], weight, bias, labels[rows], precise)
            loss_sum += loss
            correct += hits
        ctx.chunks, ctx.tied = chunks, tied
        ctx.save_for_backward(hidden, weight, bias, labels, error if len(chunks) == 1 else None)
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, kept_error = ctx.saved_tensors
        factor = (grad_loss * (labels != 0)).unsqueeze(1)  # [M, 1]
        grad_hidden = torch.empty_like(hidden)
        table = None
        for rows in ctx.chunks:
            error = kept_error
            if error is None:
                *_, error = _chunk_loss(hidden[rows], weight, bias, labels[rows], factor.dtype)
            error, narrow = prepare_error(error, factor[rows], weight.dtype)
            grad_hidden[rows] = hidden_gradient(error, narrow, weight)
            table = table_gradients(error, narrow, hidden[rows], so_far=table)
        assert table is not None  # one chunk at least
        grad_weight, grad_bias = table
        if ctx.tied is None:
            return grad_hidden, grad_weight, grad_bias, None, None
        ctx.tied.leave(grad_weight)
        return grad_hidden, None, grad_bias, None, None


def _chunk_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, precise: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, number of hits, and softmax minus one-hot ``[R, V]``."""
    logits = decode(hidden, weight, bias).to(precise)  # [R, V]
    column = labels.unsqueeze(1)
    is_target = labels != 0
    best = logits.amax(1, keepdim=True)
    target = logits.gather(1, column)
    hits = ((target >= best).squeeze(1) & is_target).sum()
    total = logits.sub_(best).exp_().sum(1, keepdim=True)  # [R, 1]
    loss = ((total.log() + best - target).squeeze(1) * is_target).sum()
    error = logits.mul_(total.reciprocal())
    error.scatter_add_(1, column, error.new_full((), -1.0).expand_as(column))
    # A softmax over 100k entries has values that fp16 cannot hold before the loss scale is on them.
    return loss, hits, error if weight.dtype == torch.float16 else error.to(weight.dtype)


def decode(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits ``[R, V]``."""
    return torch.addmm(bias, hidden, weight.mT, out=_LOGITS.take(hidden.size(0), weight.size(0), like=weight))


def prepare_error(error: Tensor, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """``error`` ``[R, V]`` and the upstream ``factor`` ``[R, 1]`` as the two functions below take them.

    The factor goes onto the narrow tensors: scaling the error would be one more pass over R x V. In fp16 it must not,
    as the loss scale is in it.
    """
    if dtype == torch.float16:
        return (error * factor).to(dtype), None
    return error, factor.to(dtype)


def hidden_gradient(error: Tensor, factor: Tensor | None, weight: Tensor) -> Tensor:
    """``[R, E]``."""
    grad = error @ weight
    return grad if factor is None else grad * factor


def table_gradients(
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
