"""The kinds of tokens, where an entry of the vocabulary alone does not say them. L tokens."""

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.tokenizer.pieces import PieceKind

_TOLD_BY_THE_NEXT = {PieceKind.E0: PieceKind.REST_OF_E0, PieceKind.E1: PieceKind.REST_OF_E1}
_RESTS = (PieceKind.REST, PieceKind.REST_OF_E0, PieceKind.REST_OF_E1)


def kinds_with_words(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The kinds of a vocabulary; one in which no piece starts a word has no words, and each piece stands alone."""
    if (kinds == PieceKind.WORD_START).any():
        return kinds
    return np.where(kinds == PieceKind.SPECIAL, kinds, np.uint8(PieceKind.UNSPACED))


def token_kinds(kinds: NDArray[np.uint8], tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Kinds of ``tokens [..., L]``, up to ``PieceKind.UNSPACED``.

    Of a character that byte-level BPE cut, every token stands alone if its script has no spaces between words; others
    are continuations.

    Args:
        kinds: ``PieceKind`` of every id.
    """
    found = kinds[tokens]
    if found.max(initial=0) <= PieceKind.UNSPACED:
        return found
    of_tokens = found.copy()
    for first, rest in _TOLD_BY_THE_NEXT.items():
        is_first = found == first
        stands_alone = is_first.copy()
        stands_alone[..., :-1] &= found[..., 1:] == rest
        stands_alone[..., -1:] = False
        of_tokens[is_first] = PieceKind.CONTINUATION
        of_tokens[stands_alone] = PieceKind.UNSPACED
    is_rest = np.isin(found, _RESTS)
    places = np.where(is_rest, 0, np.arange(found.shape[-1]))
    in_front = np.take_along_axis(of_tokens, np.maximum.accumulate(places, axis=-1), axis=-1)
    of_rests = np.where(in_front == PieceKind.UNSPACED, PieceKind.UNSPACED, PieceKind.CONTINUATION)
    return np.where(is_rest, of_rests, of_tokens).astype(np.uint8)
