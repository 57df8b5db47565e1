"""What transformers' encoder hands to its layers, in the small forms that the attention op reads, and back again.

Masks are kept as they come: ``[B, L]`` for padding and not the pairs ``[B, 1, L, L]``; relative positions are one
number for each distance and not one for each pair. All of it is plain tensors, so that gradient checkpointing, hooks
that move inputs between devices and torch.compile take it as they take transformers' own.

Shapes: B batch · N heads · L length · Q query rows.
"""

import math

import torch
from torch import Tensor

from megadeberta.ops.attention.mask import AttentionMask, padding_mask
from megadeberta.ops.attention.relative_position import relative_index


def small_mask(attention_mask: Tensor) -> Tensor | None:
    """What layers get: bool ``[B, L]`` of real tokens, or ``[B, 1, Q or 1, L]`` of visible pairs.

    None if nothing is hidden, where that can be seen without waiting for a device.
    """
    visible = (attention_mask.unsqueeze(1) if attention_mask.dim() == 3 else attention_mask).bool()
    if visible.device.type == "cpu" and not torch.compiler.is_compiling() and bool(visible.all()):
        return None
    return visible


def read_mask(mask: Tensor, *, batch: int, length: int) -> tuple[AttentionMask, Tensor]:
    """The op's mask of one that ``small_mask`` gave, and which rows see nothing: bool ``[B, L or 1, 1]``."""
    if mask.dim() == 2:
        return padding_mask(mask), ~mask.unsqueeze(-1)
    visible = mask[:, 0].expand(batch, -1, -1)  # [B, Q or 1, L]
    begin = torch.zeros(batch, length, dtype=torch.int32, device=mask.device)
    end = torch.full_like(begin, length)
    blind = ~visible.any(-1, keepdim=True)
    if visible.size(1) == 1:
        return AttentionMask(begin, end, real=visible[:, 0]), blind
    return AttentionMask(begin, end, pairs=visible), blind


def dense_mask(mask: Tensor | None, device: torch.device) -> Tensor:
    """The mask that transformers' own attention expects, bool, of a shape that broadcasts to ``[B, N, L, L]``."""
    if mask is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return mask[:, None, None, :] & mask[:, None, :, None] if mask.dim() == 2 else mask


def dense_distances(distances: Tensor) -> Tensor:
    """``[1, L, L]`` for the query and the key of every pair, from ``[2L - 1]`` by distance."""
    return relative_index(distances).unsqueeze(0)


def table_reach(length: int, half_width: int, *, buckets: int, max_distance: int) -> int:
    """How far from the middle of a table of ``2 * half_width`` rows a sequence can read, at most.

    No further than its longest distance, as no distance has a bucket beyond itself. That holds where the logarithmic
    buckets start less steeply than the distances: in every published model, but not for any ``max_distance``.
    """
    middle = buckets // 2
    if buckets > 0 and (middle < 1 or middle * math.log(max((max_distance - 1) / middle, 1.0)) < middle - 1):
        return half_width
    return min(half_width, length)
