"""A short text that costs as much as a long one, in front of which the rest of a document keeps its ids.

Of what it has read, SentencePiece keeps only the sum of the scores. Where that sum is no longer exact the ids of a word
depend on it, and so on everything in front; but any other text with the same sum will do. This one is of few, unlikely
characters, and some words that make up the difference.
"""

from collections.abc import Sequence

import numpy as np
import sentencepiece

from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY
from megadeberta.data.tokenizer.word_model import WordModel

_PRIVATE_CHARACTERS = "\ue000\uf8ff\U000f0000\U0010fffd"
_MOST_WORDS = 4096
_TRIES = 64


class CostlyText:
    """Texts of any cost for one model."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, model: WordModel) -> None:
        self._model = model
        pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
        self._unknown = _unknown_character(processor, pieces)
        has_bytes = bool(model.is_unknown.sum() > 1)
        self._ids_of_unknown = len(self._unknown.encode()) if has_bytes else 0
        self._boundary_cost = int(model.costs[pieces.index(WORD_BOUNDARY)])
        words = [piece[1:] for piece in pieces if piece.startswith(WORD_BOUNDARY) and piece[1:].isascii()]
        self._words = self._by_cost(processor, [word for word in words if word.isalnum()][:_MOST_WORDS])
        self._costs = np.array(sorted(self._words), np.int64)

    def _by_cost(
        self, processor: sentencepiece.SentencePieceProcessor, words: Sequence[str]
    ) -> dict[int, tuple[str, int]]:
        """By cost a word, and how many ids it has."""
        found = processor.encode(list(words), num_threads=1)
        return {
            int(self._model.costs[ids].sum()): (word, len(ids))
            for word, ids in zip(words, found, strict=True)
            if not self._model.is_unknown[ids].any()
        }

    def of(self, cost: int) -> tuple[str, int] | None:
        """A text that costs exactly this, with a space behind it, and how many ids it has; None if none is found."""
        if not self._unknown or not len(self._costs):
            return None
        most = self._model.most
        usual = int(self._costs[len(self._costs) // 2])  # near it there are words of almost any cost
        number, left = divmod(max(0, cost - self._boundary_cost - 3 * usual), most)
        repeated, left = divmod(left + usual // 2, usual)
        last = self._three_words(left + 3 * usual - usual // 2)
        if last is None or number == 0:
            return None
        words = [self._words[usual]] * repeated + last
        text = " ".join([self._unknown * number, *(word for word, _ in words), ""])
        return text, 1 + (self._ids_of_unknown * number or 1) + sum(ids for _, ids in words)

    def _three_words(self, cost: int) -> list[tuple[str, int]] | None:
        """Words that cost this together."""
        near = self._costs[np.argsort(np.abs(self._costs - cost // 3), kind="stable")[:_TRIES]]
        thirds = cost - near[:, None] - near[None, :]
        found = np.argwhere(np.isin(thirds, self._costs))
        if not len(found):
            return None
        first, second = found[0]
        chosen = (near[first], near[second], thirds[first, second])
        return [self._words[int(of_word)] for of_word in chosen]


def _unknown_character(processor: sentencepiece.SentencePieceProcessor, pieces: Sequence[str]) -> str:
    """One that the normaliser leaves alone and no entry has; empty if none is found."""
    known = "".join(pieces)
    kept = (c for c in _PRIVATE_CHARACTERS if processor.normalize(c * 3) == WORD_BOUNDARY + c * 3)
    return next((character for character in kept if character not in known), "")
