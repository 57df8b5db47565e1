"""SentencePiece's character normalisation, built from the steps that the tokenizers library has.

SentencePiece replaces the longest match of its compiled table at every place, from left to right. The library's
``Precompiled`` applies the same table differently: to one grapheme, or to single characters when the grapheme is long,
and with the shortest match. Alone it loses the second mark of a decomposed Vietnamese letter and leaves decomposed
Hangul, kana and half-width kana apart. NFC composes those, but it also sorts marks and extends letters that are
composed already, which SentencePiece does not; so a blocker stands at such places while it runs.

What still differs: a mark on a letter of a compatibility alphabet (full-width or mathematical), which SentencePiece
composes, and a few letters of Kannada, Sinhala, Tibetan and Dives Akuru in unusual encodings.
"""

import functools
import unicodedata
from collections.abc import Collection

from tokenizers import Regex, normalizers

_BLOCKER = "\ufdd0"
"""A noncharacter: a grapheme of its own, and no mark is sorted or composed across it."""
_END = 0x30000
"""The planes from here on hold ideographs that map one to one, and nothing that joins."""
_JOINERS = (0x200C, 0x200D)
_SYLLABLES = range(0xAC00, 0xD7A4)
_FINAL_CONSONANTS = range(0x11A8, 0x11C3)
"""Hangul: a syllable and a consonant behind it are one more syllable to NFC, two characters to SentencePiece."""


def sentencepiece_normalizer(charsmap: bytes) -> normalizers.Normalizer:
    """The steps of SentencePiece's normaliser, without the word boundary at the start.

    Args:
        charsmap: the compiled table of a model; empty for the identity.
    """
    steps: list[normalizers.Normalizer] = []
    if charsmap:
        # Borders look behind: an insertion at the very start of a text would crash the library.
        insert_blockers = normalizers.Replace(Regex(_borders(charsmap)), _BLOCKER)
        steps += [
            insert_blockers,
            normalizers.NFC(),
            normalizers.Precompiled(charsmap),
            insert_blockers,
            normalizers.NFC(),  # once more: half-width kana and their marks are ordinary ones only now
            normalizers.Replace(_BLOCKER, ""),
        ]
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    # At the end only: a space in front of the text is its first word boundary. Not Strip, which also takes U+0085.
    steps.append(normalizers.Replace(Regex(r" +\z"), ""))
    return normalizers.Sequence(steps)


@functools.cache
def _borders(charsmap: bytes) -> str:
    """Pattern of the places where NFC or ``Precompiled`` would do what SentencePiece does not.

    Between two marks that NFC would swap, and between a letter that has a decomposition and a mark behind it.
    """
    table = normalizers.Precompiled(charsmap)
    classes: dict[int, list[int]] = {}
    decomposable, joining = [], [*_JOINERS, *_FINAL_CONSONANTS]
    for code in (*range(1, 0xD800), *range(0xE000, _END)):
        character = chr(code)
        if order := unicodedata.combining(character):
            classes.setdefault(order, []).append(code)
        if unicodedata.category(character)[0] == "M":
            joining.append(code)
        elif unicodedata.decomposition(character) or code in _SYLLABLES or table.normalize_str(character) != character:
            decomposable.append(code)
    orders = sorted(classes)
    swapped = (
        f"(?<=[{_ranges([code for other in orders if other > order for code in classes[other]])}])"
        f"(?=[{_ranges(classes[order])}])"
        for order in orders[:-1]
    )
    marks = _ranges([code for codes in classes.values() for code in codes])
    two_marks = f"(?<=[{marks}])(?=[{marks}])(?:{'|'.join(swapped)})"
    return f"{two_marks}|(?<=[{_ranges(decomposable)}])(?=[{_ranges(joining)}])"


def _ranges(codes: Collection[int]) -> str:
    """Body of a character class."""
    found: list[list[int]] = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(chr(low) if low == high else f"{chr(low)}-{chr(high)}" for low, high in found)
