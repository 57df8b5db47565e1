"""Which scripts a text is written in: a cheap sign of a language that the vocabulary was not made for."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from megadeberta.data.tokenizer.scripts import script_of
from megadeberta.errors import ConfigError

_SAMPLED_CHARACTERS = 2000
"""At the beginning of a text."""
_NO_LATIN = bytes(code for code in range(256) if not (code < 128 and chr(code).isalpha()))
_ASCII = bytes(range(128))
_LAST_LETTER = 0x1F000
"""Behind the letters of all scripts, Han aside, which begins before."""
_JOINED = {"HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana", "CJK": "Han", "IDEOGRAPHIC": "Han"}
_OF_ALL = "MODIFIER"
"""Begins the names of letters that several scripts use, as the apostrophe of Ukrainian and the okina of Hawaiian."""


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


def check_scripts(names: Iterable[str], option: str) -> None:
    """Refuse the name of no script: no letter would ever be of it.

    Args:
        names: as the user gives them.
        option: that they were given to, for the message.

    Raises:
        ConfigError: with the name that is meant, where one is near.
    """
    known = {script for code in range(_LAST_LETTER) if (script := _script(chr(code)))} if (names := [*names]) else set()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.capitalize(), known, n=1, cutoff=0.75)
            meant = f"did you mean {near[0]}?" if near else "report.json of a finished set names those of a text"
            raise ConfigError(f"{option}: no script is called {name!r}; {meant}")


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """Of a letter, by its name in Unicode; empty for what is no letter, or belongs to several scripts.

    A form of a letter (\u00aa, \u00b5, \u2115) has the script of that letter: its own name does not tell it.
    """
    if not character.isalpha():
        return ""
    letter = next(filter(str.isalpha, unicodedata.normalize("NFKD", character)), character)
    first = script_of(letter)
    return "" if first == _OF_ALL else _JOINED.get(first, first.capitalize())
