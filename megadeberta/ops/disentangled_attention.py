"""Disentangled attention in plain torch: the definition of correct.

Shapes: B batch · N heads · H head size · Lq query rows · Lk keys · P rows of the (windowed) relative table.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position_key: Tensor | None,
    position_query: Tensor | None,
    index: Tensor | None,
    mask: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Content and position attention with one scale for all terms (paper eq. 4, index as in the released code).

    ``S[i, j] = (Q_i · K_j + Q_i · K_r[idx(i, j)] + K_j · Q_r[idx(i, j)]) / sqrt(H * s)`` with ``s`` = 1 + the number
    of position terms given. Both terms use the same ``idx(i, j)``: the paper's ``delta(j, i)`` for the third one is in
    no released implementation, and published weights need the shared index.

    Args:
        query: ``[B, N, Lq, H]``, not scaled.
        key: ``[B, N, Lk, H]``.
        value: ``[B, N, Lk, H]``.
        position_key: ``[N, P, H]`` for c2p, or None.
        position_query: ``[N, P, H]`` for p2c, or None.
        index: rows of the table, ``[Lq, Lk]`` or ``[B, Lq, Lk]``; None when both terms are None.
        mask: bool, broadcastable to ``[B, N, Lq, Lk]``, true = may attend. A row without any true gives zeros.
        dropout: probability on the attention weights; pass 0 in evaluation.

    Returns:
        Context ``[B, N, Lq, H]``.
    """
    terms = 1 + (position_key is not None) + (position_query is not None)
    scale = 1.0 / math.sqrt(query.size(-1) * terms)
    # The scale goes in before the products: unscaled position products overflow fp16 although the scores do not.
    query = query * scale
    scores = query @ key.mT  # [B, N, Lq, Lk]
    if position_key is not None:
        c2p = query @ position_key.mT  # [B, N, Lq, P]
        scores = scores + torch.gather(c2p, -1, _expand(index, scores))
    if position_query is not None:
        p2c = key @ (position_query * scale).mT  # [B, N, Lk, P]
        scores = scores + torch.gather(p2c, -1, _expand(index.mT, scores.mT)).mT
    probabilities = masked_softmax(scores, mask)
    if dropout > 0.0:
        probabilities = functional.dropout(probabilities, dropout)
    return probabilities @ value


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension in fp32 or better; masked entries and fully masked rows are exactly zero."""
    precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    filled = precise.masked_fill(~mask, torch.finfo(precise.dtype).min)
    return torch.softmax(filled, dim=-1).masked_fill(~mask, 0.0).to(scores.dtype)


def _expand(index: Tensor, like: Tensor) -> Tensor:
    per_sample = index if index.dim() == 3 else index.unsqueeze(0)
    return per_sample.unsqueeze(1).expand(like.shape)
