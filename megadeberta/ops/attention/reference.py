"""Disentangled attention in plain torch: the definition of correct.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) relative table.
"""

import torch
from torch import Tensor

from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms, score_scale
from megadeberta.ops.attention.relative_position import relative_index
from megadeberta.ops.counter_dropout import CounterDropout, kept


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
) -> Tensor:
    """See :func:`megadeberta.ops.attention.interface.disentangled_attention`; every intermediate is materialised."""
    # The scale goes in before the products: unscaled position products overflow fp16 although the scores do not.
    scale = score_scale(query.size(-1), position)
    query = query * scale
    scores = query @ key.mT  # [B, N, Q, L]
    if position is not None:
        index = relative_index(position.rows, query_positions=query_positions, num_queries=query.size(2))
        if position.key is not None:
            c2p = query @ position.key.mT  # [B, N, Q, P]
            scores = scores + torch.gather(c2p, -1, _expand(index, scores))
        if position.query is not None:
            p2c = key @ (position.query * scale).mT  # [B, N, L, P]
            scores = scores + torch.gather(p2c, -1, _expand(index.mT, scores.mT)).mT
    visible = None if mask is None else mask.dense(key.size(2)).unsqueeze(1)  # [B, 1, Q, L]
    probabilities = masked_softmax(scores, visible)
    if dropout is not None:
        probabilities = probabilities * (_kept_like(probabilities, dropout) * dropout.scale).to(probabilities.dtype)
    return probabilities @ value


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax over the last dimension in fp32 or better; hidden entries and fully hidden rows are exactly zero."""
    precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if visible is None:
        return torch.softmax(precise, dim=-1).to(scores.dtype)
    filled = precise.masked_fill(~visible, torch.finfo(precise.dtype).min)
    return torch.softmax(filled, dim=-1).masked_fill(~visible, 0.0).to(scores.dtype)


def _expand(index: Tensor, like: Tensor) -> Tensor:
    per_sample = index if index.dim() == 3 else index.unsqueeze(0)
    return per_sample.unsqueeze(1).expand(like.shape)


def _kept_like(probabilities: Tensor, dropout: CounterDropout) -> Tensor:
    """bool, of the shape of ``probabilities`` ``[B, N, Q, L]``."""
    return torch.ops.megadeberta.kept_weights(
        dropout.seed, dropout.samples, dropout.probability, dropout.first_head, *probabilities.shape[1:]
    )


@torch.library.custom_op("megadeberta::kept_weights", mutates_args=())
def _kept_weights(
    seed: Tensor, samples: Tensor, probability: float, first_head: int, heads: int, rows: int, columns: int
) -> Tensor:
    """An operator, as torch.compile cannot follow words without a sign."""
    return kept(
        CounterDropout(probability, seed, samples, first_head),
        torch.arange(samples.size(0), device=seed.device)[:, None, None],
        torch.arange(heads, device=seed.device)[None, :, None],
        rows=torch.arange(rows, device=seed.device)[None, None, :],
        num_columns=columns,
    ).contiguous()


@_kept_weights.register_fake
def _(
    seed: Tensor, samples: Tensor, probability: float, first_head: int, heads: int, rows: int, columns: int
) -> Tensor:
    return samples.new_empty(samples.size(0), heads, rows, columns, dtype=torch.bool)
