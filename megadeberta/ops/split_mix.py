"""Uniform 64-bit words addressed by (key, counter): SplitMix64 in torch's wrapping int64 arithmetic.

Nothing is drawn from a stream, so what is made of the words depends on no layout and needs no state. They equal those
of ``data/counter_random.py``.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
SECOND_FACTOR = 0x94D049BB133111EB - 2**64


def hash_words(keys: Tensor, counters: Tensor | int) -> Tensor:
    """Uniform 64-bit words for each (key, counter), as int64; the two broadcast."""
    if torch.compiler.is_compiling() and isinstance(counters, Tensor):
        return torch.ops.megadeberta.hash_words(keys, counters)
    return _hash_words(keys, counters)


def _hash_words(keys: Tensor, counters: Tensor | int) -> Tensor:
    offset = (counters + 1) * GOLDEN
    if isinstance(offset, int):  # wraps as int64 does
        offset = (offset + 2**63) % 2**64 - 2**63
    words = keys + offset
    words = (words ^ shift_right(words, 30)) * FIRST_FACTOR
    words = (words ^ shift_right(words, 27)) * SECOND_FACTOR
    return words ^ shift_right(words, 31)


@torch.library.custom_op("megadeberta::hash_words", mutates_args=())
def _hash_words_whole(keys: Tensor, counters: Tensor) -> Tensor:
    """An operator: torch.compile (2.13, inductor) takes ``arange(n) * GOLDEN`` for an index, and some are wrong."""
    return _hash_words(keys, counters)


@_hash_words_whole.register_fake
def _(keys: Tensor, counters: Tensor) -> Tensor:
    return keys.new_empty(torch.broadcast_shapes(keys.shape, counters.shape))


def shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own on int64 copies the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
