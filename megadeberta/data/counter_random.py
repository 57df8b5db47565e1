"""Random numbers addressed by (stream, counter): no state, so nothing to save and nothing that depends on a layout.

The words are those of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) with the
stream's key as the initial state, computed out of order. Only 64-bit integer arithmetic, and one exact conversion to
float64, so the values do not change with the platform or the numpy version.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = 2**64 - 1

Words = NDArray[np.uint64]


def stream_key(seed: int, *words: int | str | NDArray[np.integer]) -> Words:
    """Derive the key of a stream from a seed and what the stream is for.

    Every prefix is hashed before the next word enters, so ``(1, 2)``, ``(2, 1)`` and ``(1, 2, 0)`` are unrelated.

    Args:
        words: text names a purpose; an integer array gives one key per element (arrays broadcast).

    Returns:
        uint64 of the broadcast shape of ``words``.
    """
    key = _mix(_as_words(seed + _GOLDEN))
    for word in words:
        with np.errstate(over="ignore"):  # wrapping is the arithmetic meant; numpy warns about it for 0-d arrays
            key = _mix(key * np.uint64(_GOLDEN) + _as_words(word))
    return key


def random_words(keys: Words, counters: NDArray[np.integer]) -> Words:
    """Uniform 64-bit words, one for each (key, counter); the two broadcast."""
    with np.errstate(over="ignore"):
        return _mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def uniform(keys: Words, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniform multiples of 2**-53 in ``[0, 1)``, one for each (key, counter); the two broadcast."""
    return (random_words(keys, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(keys: Words, counters: NDArray[np.integer], bound: int) -> NDArray[np.int64]:
    """Uniform integers in ``range(bound)``; the bias of the remainder, ``bound / 2**64``, is not observable."""
    return (random_words(keys, counters) % np.uint64(bound)).astype(np.int64)


def _as_words(word: int | str | NDArray[np.integer]) -> Words:
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64)
    if isinstance(word, str):
        word = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.asarray(word & _MASK64, dtype=np.uint64)


def _mix(words: Words) -> Words:
    """The output function of SplitMix64: a bijection of 64-bit words in which every input bit moves every output bit.

    Overwrites ``words`` when it is an array; the caller passes a temporary.
    """
    if not words.ndim:
        return _mix(words.reshape(1)).reshape(())
    scratch = words >> np.uint64(30)
    words ^= scratch
    words *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(words, np.uint64(27), out=scratch)
    words ^= scratch
    words *= np.uint64(0x94D049BB133111EB)
    np.right_shift(words, np.uint64(31), out=scratch)
    words ^= scratch
    return words
