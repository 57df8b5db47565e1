"""Masked language modelling: which tokens are hidden, and what the model sees in their place.

Differs from the n-gram masking of microsoft/DeBERTa (mlm_task.py) where that is biased: there, n-grams are marked at a
density of 1/6 and the 15 % budget, which counts [CLS] and [SEP], is filled from the left, so the end of a sequence is
hardly ever masked, and a random replacement may be a special token.

Here n-grams tile the sequence and stand in random order on a circle, so that each of the C tokens that may be masked
has a rank. A window as wide as ``mask_rate`` x C ranks begins at a place drawn uniformly, and a unit (a word, or a
token on its own) is masked whole if its first token is in the window. This is systematic sampling with a random start
(Madow and Madow 1944): whatever the order, each unit is masked with probability ``mask_rate`` exactly, be it long or
short, at an edge or in the middle. So ``mask_rate`` of the candidates are masked in expectation, and a sequence has
fewer or more of them by less than its longest unit. The window cuts two n-grams at most, between units.

Where a script has no spaces there are no words to be had: each piece is a unit of its own.
"""

# B sequences · L tokens · Q slots for masked tokens · K most tokens a row can have masked

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import Words, integers, random_words, uniform
from megadeberta.data.token_kinds import kinds_with_words, token_kinds
from megadeberta.data.tokenizer import PieceKind
from megadeberta.layers.slots import most_masked, slots_for

MASKS_VERSION = 2
"""Another number where the same sequences and keys would get other masks; checkpoints have it in their fingerprint."""
MAX_WORD_PIECES = 16
"""A longer word is cut: text without spaces would otherwise be one word, masked whole."""

_BLOCK_TOKENS = 2**14  # the working arrays of a block of rows stay in the processor's cache
_GRAM, _ORDER, _CORRUPTION, _REPLACEMENT, _WINDOW = range(5)  # the streams of a sequence


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

    def at_rate(self, rate: float) -> "MlmMasker":
        """The same with another mask rate."""
        other = copy.copy(self)
        other._objective = self._objective.model_copy(update={"mask_rate": rate})
        return other

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
        units = find_units(token_kinds(self._kinds, tokens), whole_word=self._objective.whole_word)
        segments = tile_segments(units.opens, _stream(sample_keys, _GRAM), max_gram=self._objective.max_gram)

        # One sort puts the segments in random order, and each one's tokens from left to right: a token's key is its
        # segment's random priority with its position in the low bits. The others come last.
        low_bits = np.uint64((1 << (length - 1).bit_length()) - 1)
        visits = random_words(_stream(sample_keys, _ORDER), segments)
        visits &= ~low_bits
        visits |= positions.astype(np.uint64)
        visits[~units.is_candidate] |= ~low_bits
        visits.sort(axis=1)
        visits &= low_bits
        candidates = np.count_nonzero(units.is_candidate, axis=1)[:, None]
        begins = uniform(_stream(sample_keys, _WINDOW), np.zeros(1, np.int64)) * candidates
        chosen = take_windows(
            visits.view(np.int64), units.offset, candidates, begins=begins, rate=self._objective.mask_rate
        )
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


def take_windows(
    order: NDArray[np.int64],
    offset: NDArray[np.int64],
    candidates: NDArray[np.int64],
    *,
    begins: NDArray[np.float64],
    rate: float,
) -> NDArray[np.int64]:
    """The units whose first token has a rank in a window on the circle of ranks.

    Args:
        order: position of the token with each rank, ``[B, L]``; a unit's tokens follow each other.
        offset: place of the token at each position inside its unit, below ``MAX_WORD_PIECES``: ``[B, L]``.
        candidates: C, how many ranks make the circle, ``[B, 1]``; what ``order`` has behind them is not read.
        begins: where the windows begin, in ``[0, C)``: ``[B, 1]``.
        rate: fraction of the circle that a window is wide.

    Returns:
        Positions of all tokens of these units, ``[B, K]``; L stands for none.
    """
    length = order.shape[1]
    first = np.ceil(begins).astype(np.int64)
    widths = np.ceil(begins + rate * candidates).astype(np.int64) - first  # whole ranks, C at most
    # The last unit may go on beyond its window, by less than a word's longest.
    steps = np.arange(most_masked(rate, length) + MAX_WORD_PIECES - 1)
    visited = np.take_along_axis(order, (first + steps) % np.maximum(1, candidates), axis=1)  # [B, K]
    first_steps = steps - np.take_along_axis(offset, visited, axis=1)
    return np.where((first_steps >= 0) & (first_steps < widths), visited, length)


def _stream(sample_keys: Words, stream: int) -> Words:
    """Keys of one of a sequence's streams: ``[B]`` -> ``[B, 1]``."""
    return random_words(sample_keys[:, None], np.array([stream]))


def slots_needed(is_masked: NDArray[np.bool_]) -> int:
    """Q for rows whose targets are marked in ``is_masked [B, K]``."""
    return slots_for(int(np.count_nonzero(is_masked, axis=1).max()))
