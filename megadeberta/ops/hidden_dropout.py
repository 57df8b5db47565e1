"""Dropout of hidden states: which elements survive is a function of (key of the row, column), under every layout.

Attention weights have theirs in ``counter_dropout.py``: there a row is long and its words are made tile by tile.

Shapes: D columns · ... rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from megadeberta.ops.split_mix import FIRST_FACTOR, GOLDEN, SECOND_FACTOR, hash_words

_BYTES = 8
"""Columns that one word decides."""


def threshold(probability: float) -> int:
    """An element is dropped when its byte is below this: the probability is rounded to a multiple of 1/256."""
    return round(probability * 256)


def kept_columns(keys: Tensor, num_columns: int, *, probability: float) -> Tensor:
    """Which elements survive: bool ``[..., D]`` for int64 ``keys`` ``[...]``.

    Byte b (from the lowest) of word w of a row decides column ``8 w + b``.
    """
    return _bytes(keys, num_columns) >= threshold(probability)


def kept_as(keys: Tensor, like: Tensor, *, probability: float) -> Tensor:
    """``kept_columns`` as zeros and ones of the shape and type of ``like`` ``[..., D]``: a bool tensor in a product of
    floats costs a CPU twice as much."""
    return torch.ge(_bytes(keys, like.size(-1)), threshold(probability), out=torch.empty_like(like))


def kept_scale(probability: float) -> float:
    """The inverse of the share that is kept."""
    return 256.0 / (256 - threshold(probability))


def hidden_dropout(hidden: Tensor, keys: Tensor, *, probability: float) -> Tensor:
    """``hidden`` ``[..., D]`` with elements dropped and the others scaled by the inverse of the share that is kept.

    Args:
        keys: int64 ``[...]``: random words, one for each row. The backward pass draws from them again.
    """
    if threshold(probability) == 0:
        return hidden
    return _HiddenDropout.apply(hidden, keys, probability)


class _HiddenDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, keys: Tensor, probability: float) -> Tensor:
        ctx.probability = probability
        ctx.save_for_backward(keys)
        return kept_as(keys, hidden, probability=probability).mul_(hidden).mul_(kept_scale(probability))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keys,) = ctx.saved_tensors
        dropped = kept_as(keys, grad, probability=ctx.probability).mul_(grad).mul_(kept_scale(ctx.probability))
        return dropped, None, None


def _bytes(keys: Tensor, num_columns: int) -> Tensor:
    """uint8 ``[..., D]``."""
    if keys.device.type == "cpu":
        return torch.ops.megadeberta.dropout_bytes(keys, num_columns)
    words = hash_words(keys.unsqueeze(-1), torch.arange(_num_words(num_columns), device=keys.device))  # [..., words]
    return words.view(torch.uint8)[..., :num_columns]


def _num_words(num_columns: int) -> int:
    return (num_columns + _BYTES - 1) // _BYTES


@torch.library.custom_op("megadeberta::dropout_bytes", mutates_args=())
def _dropout_bytes(keys: Tensor, num_columns: int) -> Tensor:
    # numpy has unsigned words, which shift without a mask, and writes in place: a quarter of torch's time.
    words = _numpy_words(keys.numpy(), np.arange(_num_words(num_columns)))
    return torch.from_numpy(words.view(np.int64)).view(torch.uint8)[..., :num_columns]


@_dropout_bytes.register_fake
def _(keys: Tensor, num_columns: int) -> Tensor:
    whole = keys.new_empty(*keys.shape, _num_words(num_columns) * _BYTES, dtype=torch.uint8)
    return whole[..., :num_columns]


def _numpy_words(keys: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``hash_words`` of every key ``[...]`` and group ``[G]``: uint64 ``[..., G]``."""
    golden, first, second = (np.uint64(factor % 2**64) for factor in (GOLDEN, FIRST_FACTOR, SECOND_FACTOR))
    words = keys.view(np.uint64)[..., None] + (groups.astype(np.uint64) + np.uint64(1)) * golden
    shifted = np.empty_like(words)
    for bits, factor in ((30, first), (27, second), (31, None)):
        words ^= np.right_shift(words, np.uint64(bits), out=shifted)
        if factor is not None:
            words *= factor
    return words
