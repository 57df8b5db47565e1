"""The script of a character, as Python's Unicode tables tell it; and which scripts have no spaces between words."""

import re
import unicodedata
from functools import lru_cache

_UNSPACED = frozenset(
    "CJK HIRAGANA KATAKANA IDEOGRAPHIC BOPOMOFO HENTAIGANA NUSHU YI TANGUT THAI LAO KHMER MYANMAR TIBETAN TAI".split()
)
"""First words of the names of characters of scripts that are written without spaces between words."""
_WIDTHS = ("HALFWIDTH", "FULLWIDTH")
_TEXT = frozenset("LMN")
"""Categories that make up words: letters, marks and digits."""


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str:
    """The first word of its name in Unicode, its width left out: "LATIN", "CJK", "THAI"; "OTHER" for a nameless one."""
    words = re.split("[ -]", unicodedata.name(character, "OTHER"))
    return words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]


def is_unspaced(character: str) -> bool:
    """Whether words of this character have no spaces between them: Chinese, Japanese, Thai, Khmer and others."""
    return not character.isascii() and unicodedata.category(character)[0] in _TEXT and script_of(character) in _UNSPACED
