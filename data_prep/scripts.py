"""Which scripts a text is written in: a cheap sign of a language that the vocabulary was not made for."""

from collections import Counter
from functools import lru_cache

from megadeberta.data.tokenizer.scripts import script_of

_SAMPLED_CHARACTERS = 2000
"""At the beginning of a text."""
_NO_LATIN = bytes(code for code in range(256) if not (code < 128 and chr(code).isalpha()))
_ASCII = bytes(range(128))
_JOINED = {"HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana", "CJK": "Han"}


def count_scripts(text: str) -> Counter[str]:
    """Letters of each script in the first 2000 characters of ``text``."""
    sample = text[:_SAMPLED_CHARACTERS].encode()
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
