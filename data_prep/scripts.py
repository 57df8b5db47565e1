"""Which scripts a text is written in: a cheap sign of a language that the vocabulary was not made for."""

from collections import Counter
from functools import lru_cache

from megadeberta.data.tokenizer.scripts import script_of

_FIRST, _EVERY, SAMPLED_CHARACTERS = 64, 16, 2000
"""Of a block: its first documents and each sixteenth after them, and the first characters of each."""
_NO_LATIN = bytes(code for code in range(256) if not (code < 128 and chr(code).isalpha()))
_ASCII = bytes(range(128))
_JOINED = {"HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana", "CJK": "Han"}


def script_weight(number: int) -> int:
    """How many documents the one of this number in its block stands for; 0 = it is not looked at."""
    if number < _FIRST:
        return 1
    return 0 if number % _EVERY else _EVERY


def count_scripts(text: str) -> Counter[str]:
    """Letters of each script in the first ``SAMPLED_CHARACTERS`` of ``text``."""
    sample = text[:SAMPLED_CHARACTERS].encode()
    counts: Counter[str] = Counter()
    if latin := len(sample.translate(None, _NO_LATIN)):
        counts[_script("a")] = latin
    for character, number in Counter(sample.translate(None, _ASCII).decode()).items():
        if script := _script(character):
            counts[script] += number
    return counts


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """Of a letter, by its name in Unicode; empty for what is no letter."""
    if not character.isalpha():
        return ""
    first = script_of(character)
    return _JOINED.get(first, first.capitalize())
