"""Dropout of hidden states: which elements survive is a function of (key of the row, column), under every layout.

Attention weights have theirs in ``counter_dropout.py``: there a row is long and its words are made tile by tile.

Shapes: D columns · ... rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from megadeberta.ops.split_mix import FIRST_FACTOR, GOLDEN, SECOND_FACTOR, hash_words

TORCH, TRITON = "torch", "triton"
_BYTES = 8
"""Columns that one word decides."""


def threshold(probability: float) -> int:
    """An element is dropped when its byte is below this: the probability is rounded to a multiple of 1/256."""
    return round(probability * 256)


def kept_columns(keys: Tensor, num_columns: int, *, probability: float, site: int = 0) -> Tensor:
    """Which elements survive: bool ``[..., D]`` for rows that are drawn from ``keys ^ site``, int64 ``[...]``.

    Byte b (from the lowest) of word w of a row decides column ``8 w + b``.
    """
    return _bytes(keys, site, num_columns) >= threshold(probability)


def kept_as(keys: Tensor, like: Tensor, *, probability: float, site: int = 0) -> Tensor:
    """``kept_columns`` as zeros and ones of the shape and type of ``like`` ``[..., D]``: a bool tensor in a product of
    floats costs a CPU twice as much."""
    return torch.ge(_bytes(keys, site, like.size(-1)), threshold(probability), out=torch.empty_like(like))


def kept_scale(probability: float) -> float:
    """The inverse of the share that is kept."""
    return 256.0 / (256 - threshold(probability))


def hidden_dropout(
    hidden: Tensor, keys: Tensor, *, probability: float, site: int = 0, implementation: str = TORCH
) -> Tensor:
    """``hidden`` ``[..., D]`` with elements dropped and the others scaled by the inverse of the share that is kept.

    Args:
        keys: int64 ``[...]``: random words, one for each row. The backward pass draws from them again.
        site: the rows are drawn from ``keys ^ site``, so that all layers keep the same words.
        implementation: "torch", or "triton" for one kernel on a GPU.
    """
    if threshold(probability) == 0:
        return hidden
    if implementation == TRITON:
        return _triton(hidden, keys, site, probability)
    return _HiddenDropout.apply(hidden, keys, site, probability)


def table_dropout(table: Tensor, word: Tensor, *, probability: float, site: int, implementation: str = TORCH) -> Tensor:
    """``table`` ``[R, D]`` with elements dropped as by ``hidden_dropout``; the keys of its rows are hashed from
    ``word ^ site``, an int64 scalar."""
    if threshold(probability) == 0:
        return table
    if implementation == TRITON:
        return _triton(table, word, site, probability, of_table=True)
    keys = hash_words(word ^ site, torch.arange(table.size(0), device=table.device))
    return _HiddenDropout.apply(table, keys, 0, probability)


def _triton(hidden: Tensor, keys: Tensor, site: int, probability: float, *, of_table: bool = False) -> Tensor:
    # Triton is an optional dependency, and importing it takes a second.
    from megadeberta.ops.triton_hidden_dropout import triton_hidden_dropout

    return triton_hidden_dropout(hidden, keys, site=site, below=threshold(probability), of_table=of_table)


class _HiddenDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, keys: Tensor, site: int, probability: float) -> Tensor:
        ctx.site, ctx.probability = site, probability
        ctx.save_for_backward(keys)
        kept = kept_as(keys, hidden, site=site, probability=probability)
        return kept.mul_(hidden).mul_(kept_scale(probability))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (keys,) = ctx.saved_tensors
        kept = kept_as(keys, grad, site=ctx.site, probability=ctx.probability)
        return kept.mul_(grad).mul_(kept_scale(ctx.probability)), None, None, None


def _bytes(keys: Tensor, site: int, num_columns: int) -> Tensor:
    """uint8 ``[..., D]``."""
    if keys.device.type == "cpu":
        return torch.ops.megadeberta.dropout_bytes(keys, site, num_columns)
    groups = torch.arange(_num_words(num_columns), device=keys.device)
    words = hash_words((keys ^ site).unsqueeze(-1), groups)  # [..., words]
    return words.view(torch.uint8)[..., :num_columns]


def _num_words(num_columns: int) -> int:
    return (num_columns + _BYTES - 1) // _BYTES


@torch.library.custom_op("megadeberta::dropout_bytes", mutates_args=())
def _dropout_bytes(keys: Tensor, site: int, num_columns: int) -> Tensor:
    # numpy has unsigned words, which shift without a mask, and writes in place: a quarter of torch's time.
    words = _numpy_words(keys.numpy() ^ np.int64(site), np.arange(_num_words(num_columns)))
    return torch.from_numpy(words.view(np.int64)).view(torch.uint8)[..., :num_columns]


@_dropout_bytes.register_fake
def _(keys: Tensor, site: int, num_columns: int) -> Tensor:
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
