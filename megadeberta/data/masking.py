"""Masked language modelling: which tokens are hidden, and what the model sees in their place.

Differs from the n-gram masking of microsoft/DeBERTa (mlm_task.py) where that is biased: there, n-grams are marked at a
density of 1/6 and the 15 % budget is filled from the left, so the end of a sequence is hardly ever masked, and a random
replacement may be a special token. Here n-grams tile the sequence and are visited in random order.

Where a script has no spaces there are no words to be had: each piece is a unit of its own, and a sequence with such
pieces has ``mask_rate`` of its candidates masked in expectation, [CLS] and [SEP] not counted.
"""

# B sequences · L tokens · Q slots for masked tokens · K most tokens a row can have masked

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import Words, integers, random_words, uniform
from megadeberta.data.token_kinds import kinds_with_words, token_kinds
from megadeberta.data.tokenizer import PAD_ID, PieceKind
from megadeberta.layers.slots import masked_tokens, slots_for

MAX_WORD_PIECES = 16
"""A longer word is cut: text without spaces would otherwise be one word, masked whole."""

_BLOCK_TOKENS = 2**14  # the working arrays of a block of rows stay in the processor's cache
_GRAM, _ORDER, _CORRUPTION, _REPLACEMENT, _BUDGET = range(5)  # the streams of a sequence


@dataclass(frozen=True)
class MaskedBatch:
    """Inputs and targets, all int64. A slot with label 0 is empty, and its position is 0."""

    input_ids: NDArray[np.int64]  # [B, L]
    masked_positions: NDArray[np.int64]  # [B, Q], ascending in a row; empty slots come last
    masked_labels: NDArray[np.int64]  # [B, Q]
    more: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Other fields that the objective needs, ``[B]`` or ``[B, L]``."""

    def rows(self, start: int, stop: int) -> "MaskedBatch":
        """Some of the sequences, with as many slots as these need."""
        labels = self.masked_labels[start:stop]
        slots = slots_needed(labels != 0)
        return MaskedBatch(
            self.input_ids[start:stop],
            self.masked_positions[start:stop, :slots],
            labels[:, :slots],
            {name: values[start:stop] for name, values in self.more.items()},
        )

    def field(self, name: str) -> NDArray[np.int64]:
        """A field by its name in the batch of the model."""
        return self.more[name] if name in self.more else getattr(self, name)


@dataclass(frozen=True)
class Units:
    """What is masked together: words, or single tokens. All ``[B, L]``."""

    is_candidate: NDArray[np.bool_]
    opens: NDArray[np.bool_]
    offset: NDArray[np.int64]  # place inside the unit; meaningless outside candidates


class MlmMasker:
    """Masks sequences; every draw depends on the sequence's own key and on nothing around it."""

    def __init__(self, objective: ObjectiveConfig, piece_kinds: NDArray[np.uint8], *, mask_id: int) -> None:
        """``piece_kinds``: ``PieceKind`` of every id, ``[num_pieces + 1]``."""
        self._objective = objective
        self._kinds = kinds_with_words(piece_kinds)
        self._mask_id = mask_id
        self._replacements = np.flatnonzero(piece_kinds != PieceKind.SPECIAL)

    def __call__(self, tokens: NDArray[np.int64], sample_keys: Words) -> MaskedBatch:
        """Mask ``tokens [B, L]`` with ``sample_keys [B]``; Q is what the row with the most masked tokens needs."""
        # A block of rows after the other gives what all at once would: every draw has its own row's key.
        rows = max(1, _BLOCK_TOKENS // tokens.shape[1])
        chosen = np.concatenate(
            [
                self._choose(tokens[start : start + rows], sample_keys[start : start + rows])
                for start in range(0, len(tokens), rows)
            ]
        )
        return self._corrupt(tokens, chosen, sample_keys)

    def _choose(self, tokens: NDArray[np.int64], sample_keys: Words) -> NDArray[np.int64]:
        """Positions to mask, ascending, ``[B, K]``; L stands for none."""
        length = tokens.shape[1]
        positions = np.arange(length)
        kinds = token_kinds(self._kinds, tokens)
        units = find_units(kinds, whole_word=self._objective.whole_word)
        segments = tile_segments(units.opens, _stream(sample_keys, _GRAM), max_gram=self._objective.max_gram)

        # One sort visits the segments in random order, and each one's tokens from left to right: a token's key is its
        # segment's random priority with its position in the low bits. The others come last.
        low_bits = np.uint64((1 << (length - 1).bit_length()) - 1)
        visits = random_words(_stream(sample_keys, _ORDER), segments)
        visits &= ~low_bits
        visits |= positions.astype(np.uint64)
        visits[~units.is_candidate] |= ~low_bits
        visits.sort(axis=1)
        rate = self._objective.mask_rate
        # The last unit that is taken may go on beyond the budget, by less than a word's longest.
        most = min(length, int(masked_tokens(rate, length)) + MAX_WORD_PIECES)
        visited = (visits[:, :most] & low_bits).astype(np.int64)  # [B, L] -> [B, K]

        # A unit is taken whole if its first token comes before the budget is used up. Its tokens are neighbours in the
        # order of visits, so that the first one's rank is this one's less its place in the unit.
        ranks = positions[:most]
        first_ranks = ranks - np.take_along_axis(units.offset, visited, axis=1)
        candidates = np.count_nonzero(units.is_candidate, axis=1)[:, None]
        budgets = masked_tokens(rate, np.count_nonzero(tokens != PAD_ID, axis=1))[:, None]
        if self._objective.whole_word:
            is_unspaced = (kinds == PieceKind.UNSPACED).any(axis=1, keepdims=True)
            budgets = np.where(is_unspaced, _drawn_budgets(rate * candidates, sample_keys), budgets)
        # L stands behind every position, so that sorting brings empty places to the end.
        chosen = np.where((first_ranks < budgets) & (ranks < candidates), visited, length)
        chosen.sort(axis=1)
        return chosen

    def _corrupt(self, tokens: NDArray[np.int64], chosen: NDArray[np.int64], sample_keys: Words) -> MaskedBatch:
        objective, length = self._objective, tokens.shape[1]
        slots = slots_needed(chosen < length)
        chosen = np.pad(chosen, ((0, 0), (0, max(0, slots - chosen.shape[1]))), constant_values=length)[:, :slots]
        filled = chosen < length  # [B, Q]
        positions = np.where(filled, chosen, 0)
        labels = np.where(filled, np.take_along_axis(tokens, positions, axis=1), 0)

        # One uniform number decides between mask, random token and the token itself. Both it and the random token are
        # drawn for every slot, by position: what one target becomes does not depend on how many there are.
        share = uniform(_stream(sample_keys, _CORRUPTION), positions)
        drawn = integers(_stream(sample_keys, _REPLACEMENT), positions, len(self._replacements))
        shown = np.where(
            share < objective.mask_token_prob + objective.random_token_prob, self._replacements[drawn], labels
        )
        shown = np.where(share < objective.mask_token_prob, self._mask_id, shown)
        input_ids = tokens.copy()
        # Filled slots alone, as flat places: the position of an empty slot is 0, and would overwrite the first token.
        row_starts = np.arange(len(tokens))[:, None] * length
        input_ids.reshape(-1)[(positions + row_starts)[filled]] = shown[filled]
        return MaskedBatch(input_ids, positions, labels)


def _drawn_budgets(expected: NDArray[np.float64], sample_keys: Words) -> NDArray[np.int64]:
    """Whole numbers of tokens, ``[B, 1]``, one at least, whose means are ``expected``."""
    below = np.floor(expected)
    drawn = uniform(_stream(sample_keys, _BUDGET), np.zeros(1, np.int64)) < expected - below
    return np.maximum(1, below.astype(np.int64) + drawn)


def starts_of_units(kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where words begin: special tokens too, and what follows them or a piece of a script without spaces.

    Args:
        kinds: of every token, from ``token_kinds``: ``[..., L]``.

    Returns:
        ``[..., L]``.
    """
    starts = kinds != PieceKind.CONTINUATION
    starts[..., 1:] |= (kinds[..., :-1] == PieceKind.SPECIAL) | (kinds[..., :-1] == PieceKind.UNSPACED)
    return starts


def find_units(kinds: NDArray[np.uint8], *, whole_word: bool) -> Units:
    """Split sequences into words, ``MAX_WORD_PIECES`` at most, or into tokens.

    A candidate that follows a special token or a piece of a script without spaces opens a unit even if its piece is a
    continuation.

    Args:
        kinds: of every token, from ``token_kinds``: ``[B, L]``.
    """
    is_candidate = kinds != PieceKind.SPECIAL
    if not whole_word:
        return Units(is_candidate, is_candidate, np.zeros(kinds.shape, np.int64))
    starts = starts_of_units(kinds)
    positions = np.arange(kinds.shape[1])
    # The running maximum of start positions is the start of the word that a token is in.
    offset = positions - np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
    offset %= MAX_WORD_PIECES  # each further piece of a long word is a unit of its own
    return Units(is_candidate, is_candidate & (offset == 0), offset)


def tile_segments(opens: NDArray[np.bool_], keys: Words, *, max_gram: int) -> NDArray[np.int64]:
    """Cut each row's units, from left to right, into segments of n units, n in ``1..max_gram`` with weight 1/n.

    Args:
        opens: whether a token opens a unit, ``[B, L]``.
        keys: ``[B, 1]``.

    Returns:
        The index of every token's segment in its row, ``[B, L]``.
    """
    units = np.cumsum(opens, axis=1) - 1  # number of every token's unit; -1 before the first
    if max_gram == 1:
        return units
    # A length for every unit, as if each opened a segment: more than are needed, but all rows in one draw.
    weights = np.cumsum(1 / np.arange(1, max_gram + 1))
    most_units = int(units.max()) + 1
    shares = uniform(keys, np.arange(most_units))
    grams = 1 + np.searchsorted(weights[:-1] / weights[-1], shares, side="right")
    # Segment s ends where the first s + 1 lengths do; what ends behind the last unit falls into one spare column.
    ends = np.minimum(np.cumsum(grams, axis=1), most_units)
    is_first = np.zeros((len(opens), most_units + 1), np.int64)
    np.put_along_axis(is_first, ends, 1, axis=1)
    segment_of_unit = np.cumsum(is_first, axis=1)
    return np.take_along_axis(segment_of_unit, np.maximum(units, 0), axis=1)


def _stream(sample_keys: Words, stream: int) -> Words:
    """Keys of one of a sequence's streams: ``[B]`` -> ``[B, 1]``."""
    return random_words(sample_keys[:, None], np.array([stream]))


def slots_needed(is_masked: NDArray[np.bool_]) -> int:
    """Q for rows whose targets are marked in ``is_masked [B, K]``."""
    return slots_for(int(np.count_nonzero(is_masked, axis=1).max()))
