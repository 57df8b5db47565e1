"""``split_mix.hash_words`` inside a Triton kernel."""

import triton
import triton.language as tl

from megadeberta.ops.split_mix import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_GOLDEN, _FIRST, _SECOND = tl.constexpr(GOLDEN), tl.constexpr(FIRST_FACTOR), tl.constexpr(SECOND_FACTOR)


@triton.jit
def hash_words(keys, counters):
    """Uniform 64-bit words for each (key, counter), int64 both; the two broadcast."""
    words = keys + (counters + 1) * _GOLDEN
    words = (words ^ ((words >> 30) & 0x3FFFFFFFF)) * _FIRST
    words = (words ^ ((words >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return words ^ ((words >> 31) & 0x1FFFFFFFF)
