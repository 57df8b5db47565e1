"""Decoder and cross entropy over a vocabulary that is divided among ranks; the logits are never gathered.

Shapes: M rows · R rows of a chunk · E embedding width · V vocabulary · T tensor-parallel ranks.
"""

from typing import Any

import torch
from torch import Tensor

from megadeberta.ops.logit_chunks import row_chunks
from megadeberta.ops.masked_cross_entropy import decode, hidden_gradient, prepare_error, table_gradients
from megadeberta.ops.tied_table import TiedGradient
from megadeberta.parallel.tensor.collectives import largest, start_sum
from megadeberta.parallel.tensor.shard import VocabularyShard


def vocabulary_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    shard: VocabularyShard,
    tied: TiedGradient | None = None,
) -> tuple[Tensor, Tensor]:
    """``masked_cross_entropy`` with a shard of the table on each rank; the same result on every rank.

    Over tp, for each chunk of rows: in forward an all-reduce of the largest logit ``[R]``, and one of the target's
    logit and of the sum of exponentials ``[2, R]``; in backward an all-reduce of the gradient of ``hidden`` ``[R, E]``,
    under way while that of the weight is computed.

    Args:
        hidden: ``[M, E]``, the same on every rank.
        weight: ``[V/T, E]``.
        bias: ``[V/T]``.
        labels: ``[M]`` ids of the whole vocabulary, 0 = no target.
        tied: takes the gradient of ``weight`` to its other use.

    Returns:
        Loss sum, and the number of rows whose label has the highest logit (a tie counts).
    """
    return _VocabularyCrossEntropy.apply(hidden, weight, bias, labels, shard, tied)


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        shard: VocabularyShard,
        tied: TiedGradient | None,
    ) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss_sum = torch.zeros((), dtype=precise, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        best = torch.empty(hidden.size(0), 1, dtype=precise, device=hidden.device)
        total = torch.empty_like(best)
        chunks = row_chunks(hidden.size(0), shard.largest)
        error = None
        for part in chunks:
            logits = decode(hidden[part], weight, bias).to(precise)  # [R, V/T]
            best[part], target, total[part] = _statistics(logits, labels[part], shard)
            is_target = labels[part] != 0
            loss_sum += ((total[part].log() + best[part] - target).squeeze(1) * is_target).sum()
            correct += ((target >= best[part]).squeeze(1) & is_target).sum()
            error = _error(logits, labels[part], shard, total=total[part]) if len(chunks) == 1 else None
        ctx.chunks, ctx.shard, ctx.tied = chunks, shard, tied
        if error is not None and weight.dtype != torch.float16:
            error = error.to(weight.dtype)
        ctx.save_for_backward(hidden, weight, bias, labels, best, total, error)
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, best, total, kept_error = ctx.saved_tensors
        factor = (grad_loss * (labels != 0)).unsqueeze(1)  # [M, 1]
        summing = []
        table = None
        for part in ctx.chunks:
            error = kept_error
            if error is None:
                logits = decode(hidden[part], weight, bias).to(best.dtype).sub_(best[part]).exp_()
                error = _error(logits, labels[part], ctx.shard, total=total[part])
                error = error if weight.dtype == torch.float16 else error.to(weight.dtype)
            error, narrow = prepare_error(error, factor[part], weight.dtype)
            summing.append(start_sum(hidden_gradient(error, narrow, weight), ctx.shard.group))
            table = table_gradients(error, narrow, hidden[part], so_far=table)
        assert table is not None  # one chunk at least
        grad_weight, grad_bias = table
        grad_hidden = torch.cat([pending.wait() for pending in summing])
        if ctx.tied is None:
            return grad_hidden, grad_weight, grad_bias, None, None, None
        ctx.tied.leave(grad_weight)
        return grad_hidden, None, grad_bias, None, None, None


def _statistics(logits: Tensor, labels: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, the label's logit and the sum of exponentials over all shards, each ``[R, 1]``.

    ``logits`` ``[R, V/T]`` become their exponentials, less the largest.
    """
    column, is_here = _columns(labels, shard)
    target = logits.gather(1, column).masked_fill(~is_here, 0.0)
    best = largest(logits.amax(1, keepdim=True), shard.group)
    mine = torch.stack([target, logits.sub_(best).exp_().sum(1, keepdim=True)])  # [2, R, 1]
    target, total = start_sum(mine, shard.group).wait()
    return best, target, total


def _error(exponentials: Tensor, labels: Tensor, shard: VocabularyShard, *, total: Tensor) -> Tensor:
    """Softmax minus one-hot ``[R, V/T]``, in the place of the exponentials."""
    column, is_here = _columns(labels, shard)
    error = exponentials.mul_(total.reciprocal())
    return error.scatter_add_(1, column, -is_here.to(error.dtype))


def _columns(labels: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """Each label's column in this shard, 0 where another one has it, and whether it is here: both ``[R, 1]``."""
    is_here = ((labels >= shard.rows.start) & (labels < shard.rows.stop)).unsqueeze(1)
    return (labels.unsqueeze(1) - shard.rows.start).masked_fill(~is_here, 0), is_here
