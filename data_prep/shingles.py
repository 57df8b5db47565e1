"""Texts as sequences of 64-bit numbers, one per word, and runs of n of them: what compares texts by what they say.

A word is a run of letters, their marks and digits, whatever their case; in scripts that write no spaces (Chinese,
Japanese, Thai, Lao, Khmer, Burmese, Tibetan) every character is one. Punctuation and spacing do not count. The numbers
are the same on every machine. U words, N runs.
"""

import functools
import hashlib
import re
import unicodedata

import numpy as np

_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_FACTOR = 0x9E3779B97F4A7C15
_LARGEST_CACHE = 1 << 20


@functools.cache
def _word() -> re.Pattern[str]:
    """Made by whoever needs it: it takes longer than many an import."""
    # Accents and vowel signs belong to their word, and are no letters to Python.
    marks = "".join(chr(code) for code in range(0x300, 0x1C00) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"[^\W_{_UNSPACED}\U00020000-\U0003ffff]"
    return re.compile(rf"[{_UNSPACED}\U00020000-\U0003ffff]|{letter}(?:{letter}|[{marks}])*")


class _WordHashes(dict[str, int]):
    """Remembers the hashes of the words seen, as most words come again."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _LARGEST_CACHE:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value


_HASHES = _WordHashes()


def word_hashes(text: str) -> np.ndarray:
    """``[U]`` uint64, one per word of ``text``."""
    return np.array([_HASHES[word] for word in _word().findall(text.casefold())], dtype=np.uint64)


def run_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """``[N]`` uint64, one per run of ``length`` words; N = max(0, U - length + 1).

    Args:
        words: ``[U]`` from ``word_hashes``.
    """
    runs = max(0, len(words) - length + 1)
    hashes = np.zeros(runs, np.uint64)
    for place in range(length):
        hashes += words[place : place + runs] * np.uint64(pow(_FACTOR, place + 1, 1 << 64))
    # The high half of a product depends on all bits below it, and the low half on few.
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_FACTOR)
    return hashes ^ (hashes >> np.uint64(29))
