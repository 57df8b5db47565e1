"""Dropout of hidden states: which elements survive is a function of (key of the row, column), under every layout.

Attention weights have theirs in ``counter_dropout.py``: there a row is long and its words are made tile by tile.

Shapes: D columns · ... rows.
"""

import torch
from torch import Tensor

from megadeberta.ops.split_mix import hash_words

_BYTES = 8
"""Columns that one word decides."""


def threshold(probability: float) -> int:
    """An element is dropped when its byte is below this: the probability is rounded to a multiple of 1/256."""
    return round(probability * 256)


def kept_columns(keys: Tensor, num_columns: int, *, probability: float) -> Tensor:
    """Which elements survive: bool ``[..., D]`` for int64 ``keys`` ``[...]``.

    Byte b (from the lowest) of word w of a row decides column ``8 w + b``.
    """
    groups = torch.arange((num_columns + _BYTES - 1) // _BYTES, device=keys.device)
    words = hash_words(keys.unsqueeze(-1), groups)  # [..., groups]
    return words.view(torch.uint8)[..., :num_columns] >= threshold(probability)


def hidden_dropout(hidden: Tensor, keys: Tensor, *, probability: float) -> Tensor:
    """``hidden`` ``[..., D]`` with elements dropped and the others scaled by the inverse of the share that is kept.

    Args:
        keys: int64 ``[...]``: random words, one for each row.
    """
    if threshold(probability) == 0:
        return hidden
    return _HiddenDropout.apply(hidden, keys, probability)


class _HiddenDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, keys: Tensor, probability: float) -> Tensor:
        kept = kept_columns(keys, hidden.size(-1), probability=probability)
        ctx.save_for_backward(kept)
        ctx.scale = 256.0 / (256 - threshold(probability))
        return (hidden * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None, None
