"""Vocabulary entries: the special ones, and what masking needs to know of the others.

Ids are those of the published checkpoints: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, then ordinary pieces.
"""

import unicodedata
from enum import IntEnum

from megadeberta.data.tokenizer.scripts import is_unspaced

PAD_ID, CLS_ID, SEP_ID, UNK_ID = range(4)
SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
MASK = "[MASK]"
WORD_BOUNDARY = "\u2581"
"""What SentencePiece writes for the space in front of a word."""


class PieceKind(IntEnum):
    """What masking needs to know of a piece."""

    SPECIAL = 0
    """Never a target and never drawn as a replacement: [PAD] [CLS] [SEP] [UNK] [MASK], control and unused pieces."""
    CONTINUATION = 1
    WORD_START = 2
    UNSPACED = 3
    """Of a script that puts no space between words: masked on its own, whatever stands beside it."""
    REST = 4
    """Bytes from inside a character, which belong to what stands in front; ``token_kinds`` says to which kind."""
    REST_OF_E0 = 5
    """The same; behind the byte E0 they are of Thai, Lao or Tibetan."""
    REST_OF_E1 = 6
    """The same; behind the byte E1 they are of Burmese or Khmer."""
    E0 = 7
    """This byte alone, with which characters of scripts with and without spaces begin: the next token tells."""
    E1 = 8


def starts_word(piece: str) -> bool:
    """Whether a piece opens a word: a leading word boundary, or one whitespace, control or punctuation character.

    As in microsoft/DeBERTa's spm_tokenizer.py, every ASCII symbol counts as punctuation, "$" and "+" included.
    """
    if piece.startswith(WORD_BOUNDARY):
        return True
    if len(piece) != 1:
        return False
    is_ascii_symbol = piece.isascii() and piece.isprintable() and not piece.isalnum()
    return is_ascii_symbol or unicodedata.category(piece)[0] in "PCZ"


def kind_of_text(piece: str) -> PieceKind:
    """The kind of an ordinary piece, whose text has ``WORD_BOUNDARY`` for a space in front of a word."""
    if any(map(is_unspaced, piece)):
        return PieceKind.UNSPACED
    return PieceKind.WORD_START if starts_word(piece) else PieceKind.CONTINUATION
