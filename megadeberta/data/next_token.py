"""Sequences that are read left to right: every token is the target of the place before it.

In a run that also masks, each sequence is one or the other, by a draw of its own. The attention that belongs to it
travels as one number: the length of the prefix that is seen from both sides; 0 = causal, L = all, as masking needs it.
"""

# B sequences · L tokens · Q slots for targets

import copy

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import Words, random_words, uniform
from megadeberta.data.masking import MaskedBatch, MlmMasker, slots_needed
from megadeberta.data.tokenizer import PAD_ID
from megadeberta.layers.objectives import objective_of

_KIND, _PREFIX, _PREFIX_LENGTH = range(16, 19)  # streams of a sequence; masking has the first ones


class NextTokenTargets:
    """Makes batches of sequences that are read left to right, alone or beside masked ones."""

    def __init__(self, objective: ObjectiveConfig, piece_kinds: NDArray[np.uint8], *, mask_id: int) -> None:
        """See ``MlmMasker``. Without a weight for masked tokens every sequence is read left to right."""
        self._config = objective.autoregressive
        has_masked = "mlm_loss" in objective_of(objective).loss_weights(objective)
        self._share = self._config.share if has_masked else 1.0
        self._masker = MlmMasker(objective, piece_kinds, mask_id=mask_id)

    def at_rate(self, rate: float) -> "NextTokenTargets":
        """The same with another mask rate."""
        other = copy.copy(self)
        other._masker = self._masker.at_rate(rate)
        return other

    def __call__(self, tokens: NDArray[np.int64], sample_keys: Words) -> MaskedBatch:
        """Targets for ``tokens [B, L]`` with ``sample_keys [B]``.

        [SEP] is no target: it stands where the sequence is full, so it says nothing. [CLS] and padding are none either.
        """
        length = tokens.shape[1]
        left_to_right = _draw(sample_keys, _KIND) < self._share
        masked = self._masker(tokens, sample_keys)
        prefix = np.where(left_to_right, self._prefix_lengths(tokens, sample_keys), length)  # [B]

        following = np.zeros_like(tokens)
        following[:, :-1] = tokens[:, 1:]
        places = np.arange(length)
        last = np.count_nonzero(tokens != PAD_ID, axis=1, keepdims=True) - 1
        marks = np.take_along_axis(tokens, last * [[0, 1]], axis=1)  # [CLS] and [SEP] begin and end every sequence
        is_mark = (following[:, :, None] == marks[:, None]).any(axis=2)
        is_target = ~is_mark & (following != PAD_ID) & (places >= prefix[:, None] - 1)
        positions = np.where(is_target, places, length)
        positions.sort(axis=1)
        positions = np.where(left_to_right[:, None], positions, _widen(masked, length))
        slots = slots_needed(positions < length)
        positions = np.pad(positions, ((0, 0), (0, max(0, slots - length))), constant_values=length)[:, :slots]

        filled = positions < length
        positions = np.where(filled, positions, 0)
        sources = np.where(left_to_right[:, None], following, _scatter_labels(masked, length))
        labels = np.where(filled, np.take_along_axis(sources, positions, axis=1), 0)
        input_ids = np.where(left_to_right[:, None], tokens, masked.input_ids)
        return MaskedBatch(input_ids, positions, labels, {"prefix_lengths": prefix})

    def _prefix_lengths(self, tokens: NDArray[np.int64], sample_keys: Words) -> NDArray[np.int64]:
        """0, or a length from 1 to half of the tokens: ``[B]``."""
        halves = np.maximum(1, np.count_nonzero(tokens != PAD_ID, axis=1) // 2)
        share = _draw(sample_keys, _PREFIX_LENGTH)
        drawn = 1 + np.floor(share * halves).astype(np.int64)
        return np.where(_draw(sample_keys, _PREFIX) < self._config.prefix_share, drawn, 0)


def _draw(sample_keys: Words, stream: int) -> NDArray[np.float64]:
    return uniform(random_words(sample_keys, np.array(stream)), np.array(0))


def _widen(masked: MaskedBatch, length: int) -> NDArray[np.int64]:
    """Masked positions as ``[B, L]``, with L in the empty slots."""
    positions = np.where(masked.masked_labels != 0, masked.masked_positions, length)[:, :length]
    return np.pad(positions, ((0, 0), (0, length - positions.shape[1])), constant_values=length)


def _scatter_labels(masked: MaskedBatch, length: int) -> NDArray[np.int64]:
    """Labels at their places, 0 elsewhere: ``[B, L]``."""
    labels = np.zeros((len(masked.masked_labels), length + 1), np.int64)
    targets = np.where(masked.masked_labels != 0, masked.masked_positions, length)
    np.put_along_axis(labels, targets, masked.masked_labels, axis=1)
    return labels[:, :length]
