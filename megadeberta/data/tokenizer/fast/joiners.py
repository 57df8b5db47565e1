"""Characters that the ``tokenizers`` library may treat together with the one in front of them."""

import unicodedata
from collections.abc import Mapping, Sequence

from tokenizers import normalizers

_CODES = (*range(1, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200))
"""Where such characters are: the other planes hold ideographs, private use, and nothing."""
_HANGUL_VOWELS, _HANGUL_FINALS = range(0x1161, 0x1176), range(0x11A8, 0x11C3)
_APART = "\u4e00\u4e01\u4e02"
"""Between texts that are normalised in one call: three ideographs that no table changes, and that do not join."""


def normalize_each(normalizer: normalizers.Normalizer, texts: Sequence[str]) -> list[str]:
    """Each text normalised; one call for all."""
    return normalizer.normalize_str(_APART.join((*texts, ""))).split(_APART)[:-1]


def composing_characters() -> set[str]:
    """What NFC joins to a character in front, or moves past it; of old and new versions of Unicode."""
    found = set(map(chr, (*_HANGUL_VOWELS, *_HANGUL_FINALS)))
    unknown = []
    for character in map(chr, _CODES):
        category = unicodedata.category(character)
        if unicodedata.combining(character) or category[0] == "M":
            found.add(character)
        elif category == "Cn":
            unknown.append(character)
        decomposition = unicodedata.decomposition(character)
        if decomposition and not decomposition.startswith("<"):
            found.update(chr(int(code, 16)) for code in decomposition.split()[1:])
    return found | _newer_than_python(unknown)


def _newer_than_python(characters: Sequence[str]) -> set[str]:
    """Those of ``characters`` that the library's tables know and Python's do not."""
    lowest, highest = "\u0334", "\u0345"  # marks of combining class 1 and 240: NFC moves the others past one of them
    together = (characters, [c + lowest for c in characters], [highest + c for c in characters])
    found: set[str] = set()
    for character, alone, with_lowest, with_highest in zip(
        characters, *(normalize_each(normalizers.NFD(), texts) for texts in together), strict=True
    ):
        found.update(alone[1:])
        if with_lowest != alone + lowest or with_highest != highest + alone:
            found.add(character)
    return found


def grapheme_extenders(table: normalizers.Normalizer, single: Mapping[str, str]) -> set[str]:
    """What ``Precompiled`` takes as one with the character in front of it, and may lose.

    Args:
        single: what the table does to single characters.
    """
    characters = [chr(code) for code in _CODES if chr(code) not in _APART]
    alone = normalize_each(table, characters)
    found: set[str] = set()
    for size in (1, 2):  # it looks at no more than five bytes at a time
        letters = (c for c in single if len(c.encode()) == size and unicodedata.category(c)[0] == "L")
        if letter := next(letters, None):
            together = normalize_each(table, [letter + character for character in characters])
            expected = (single[letter] + value for value in alone)
            found |= {c for c, both, each in zip(characters, together, expected, strict=True) if both != each}
    return found
