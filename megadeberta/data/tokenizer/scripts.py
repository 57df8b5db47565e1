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


def character_size(lead: int) -> int:
    """Bytes of a character in UTF-8, by the first one."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


@lru_cache(maxsize=1 << 12)
def is_unspaced_start(begun: bytes) -> bool:
    """Whether most letters whose UTF-8 begins with these bytes, and has more, are of scripts without spaces."""
    size = character_size(begun[0])
    if size == 4 and len(begun) == 1:
        return False  # rare Chinese, and every emoji
    code = begun[0] & (0x7F >> size)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    bits = 6 * (size - len(begun))
    characters = map(chr, range(code << bits, (code + 1) << bits))
    letters = [character for character in characters if unicodedata.category(character)[0] in _TEXT]
    return 2 * sum(map(is_unspaced, letters)) > len(letters)
