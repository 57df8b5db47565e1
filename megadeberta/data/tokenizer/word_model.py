"""Which SentencePiece models cut a text word by word, so that what was found for a word holds wherever it occurs.

SentencePiece looks for the most likely cut of a whole text. That is the most likely cut of each word by itself if

* the normaliser leaves the space between two words alone, and closes up what a word leaves empty;
* every entry with the word boundary has it in front, and the boundary alone is an entry: no entry goes across two
  words, and none of the unknown characters that SentencePiece joins to one token are in two;
* its sums are exact, so that what is in front of a word cannot decide between two cuts. It adds in 32 bits: sums of
  multiples of ``SCORE_STEP`` are exact up to ``2 ** 24`` of these steps. Vocabularies that ``prep`` trains have such
  scores; published ones have not, and the score of a user-defined symbol is none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.tokenizer.fast.charsmap import is_own_table, may_replace, replacement_texts
from megadeberta.data.tokenizer.fast.sentencepiece_file import (
    SCORE_STEP,
    PieceType,
    UnigramModel,
    parse_unigram_model,
)
from megadeberta.data.tokenizer.pieces import UNK_ID, WORD_BOUNDARY
from megadeberta.errors import DataError

EXACT_STEPS = 1 << 24
"""SentencePiece's sums are exact up to here."""
_UNKNOWN_PENALTY = 10.0
"""SentencePiece gives an unknown character this much less than its least likely entry."""
_LARGEST_COST = 1 << 16


@dataclass(frozen=True)
class WordModel:
    """What the entries of such a model cost: their negative scores in steps of ``SCORE_STEP``."""

    costs: NDArray[np.int64]
    """Of every id; 0 for unknown characters, bytes and what is never in text."""
    characters: NDArray[np.int64]
    """Of every id; 0 where its cost is."""
    is_unknown: NDArray[np.bool_]
    """Of every id: whether it stands for unknown characters or a byte of one."""
    most: int
    """Of a character at most: that of an unknown one."""
    longest_replacement: int
    """Characters that the normaliser makes of one at most."""


def read_word_model(content: bytes) -> WordModel | None:
    """The costs of a model that cuts text word by word; None for any other.

    Args:
        content: of an ``spm.model`` that SentencePiece has read before.
    """
    try:
        model = parse_unigram_model(content)
        longest = max(map(len, replacement_texts(model.charsmap).split("\0")))
    except DataError:  # treats whitespace in another way, or is damaged
        return None
    steps = np.array([piece.score if piece.type == PieceType.NORMAL else 0.0 for piece in model.pieces]) / -SCORE_STEP
    most = steps.max() + _UNKNOWN_PENALTY / SCORE_STEP
    is_exact = bool((steps >= 0).all() and most < _LARGEST_COST and (steps == np.round(steps)).all())
    if not is_exact or not _is_cut_at_words(model) or not _keeps_spaces(model.charsmap):
        return None
    is_unknown = np.array([piece.type == PieceType.BYTE for piece in model.pieces])
    is_unknown[UNK_ID] = True
    characters = np.array([len(piece.text) * (piece.type == PieceType.NORMAL) for piece in model.pieces])
    return WordModel(steps.astype(np.int64), characters, is_unknown, int(most), max(1, longest))


def _is_cut_at_words(model: UnigramModel) -> bool:
    texts = model.texts(PieceType.NORMAL)
    return (
        WORD_BOUNDARY in texts
        and not model.texts(PieceType.USER_DEFINED)
        and not any(WORD_BOUNDARY in text[1:] for text in texts)
    )


def _keeps_spaces(charsmap: bytes) -> bool:
    """Whether no rule of a table replaces a space, alone or with others, nor makes two of them or a word boundary."""
    if is_own_table(charsmap):
        return True
    made = replacement_texts(charsmap)
    return not may_replace(charsmap, ord(" ")) and "  " not in made and WORD_BOUNDARY not in made
