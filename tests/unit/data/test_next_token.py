"""Next-token targets, prefixes and the mixture with masking."""

import numpy as np
import pytest

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.targets import load_targets
from megadeberta.data.tokenizer import PieceKind

PAD, CLS, SEP, MASK = 0, 1, 2, 100
KINDS = np.array([PieceKind.SPECIAL] * 4 + [PieceKind.WORD_START] * 96 + [PieceKind.SPECIAL], np.uint8)


def _make(tokens: np.ndarray, **objective: object):
    targets = load_targets(ObjectiveConfig.model_validate(objective), KINDS, mask_id=MASK)
    return targets(tokens, stream_key(1, "test", np.arange(len(tokens))))


def _rows(count: int, length: int = 24) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(4, 100, (count, length))
    tokens[:, 0], tokens[:, -3], tokens[:, -2:] = CLS, SEP, PAD
    return tokens


def test_every_ordinary_token_is_the_target_of_the_place_before_it() -> None:
    tokens = np.array([[CLS, 7, 8, 3, SEP, CLS, 9, SEP, PAD, PAD]])
    batch = _make(tokens, name="ar")
    assert batch.input_ids.tolist() == tokens.tolist()
    filled = batch.masked_labels[0] != 0
    assert batch.masked_positions[0][filled].tolist() == [0, 1, 2, 5]
    assert batch.masked_labels[0][filled].tolist() == [7, 8, 3, 9]
    assert batch.more["prefix_lengths"].tolist() == [0]


def test_a_prefix_is_at_most_half_of_the_tokens_and_has_no_targets() -> None:
    tokens = _rows(400)
    batch = _make(tokens, name="ar", autoregressive={"prefix_share": 0.5})
    assert 0.4 < (batch.more["prefix_lengths"] > 0).mean() < 0.6
    prefixes = batch.more["prefix_lengths"]
    assert prefixes.max() == 11 and prefixes[prefixes > 0].min() == 1
    for row in range(len(tokens)):
        filled = batch.masked_labels[row] != 0
        positions = batch.masked_positions[row][filled]
        assert positions.tolist() == list(range(max(0, batch.more["prefix_lengths"][row] - 1), 20))
        assert batch.masked_labels[row][filled].tolist() == tokens[row][positions + 1].tolist()


def test_sequences_of_a_mixture_are_masked_or_read_left_to_right() -> None:
    tokens = _rows(600)
    batch = _make(tokens, name="mlm_ar", autoregressive={"share": 0.25}, mask_token_prob=1, random_token_prob=0)
    alone = _make(tokens, name="mlm", mask_token_prob=1, random_token_prob=0)
    left_to_right = batch.more["prefix_lengths"] == 0
    assert 0.2 < left_to_right.mean() < 0.3
    assert set(batch.more["prefix_lengths"].tolist()) == {0, tokens.shape[1]}
    assert (batch.input_ids[left_to_right] == tokens[left_to_right]).all()
    for row in np.flatnonzero(~left_to_right):
        kept = [array[row][array[row] != 0].tolist() for array in (batch.masked_labels, alone.masked_labels)]
        assert kept[0] == kept[1]
        assert batch.input_ids[row].tolist() == alone.input_ids[row].tolist()


@pytest.mark.parametrize("name", ["ar", "mlm_ar"])
def test_draws_do_not_depend_on_the_neighbours(name: str) -> None:
    tokens = _rows(8)
    targets = load_targets(ObjectiveConfig(name=name, autoregressive={"prefix_share": 0.5}), KINDS, mask_id=MASK)
    keys = stream_key(1, "test", np.arange(8))
    whole, alone = targets(tokens, keys), targets(tokens[5:6], keys[5:6])
    assert whole.more["prefix_lengths"][5] == alone.more["prefix_lengths"][0]
    kept = [batch.masked_labels[row][batch.masked_labels[row] != 0] for batch, row in ((whole, 5), (alone, 0))]
    assert kept[0].tolist() == kept[1].tolist()


def test_rtd_hides_every_chosen_token_by_itself() -> None:
    config = ObjectiveConfig(name="rtd")
    assert (config.mask_token_prob, config.random_token_prob, config.max_gram) == (1.0, 0.0, 1)
    batch = _make(_rows(50), name="rtd")
    filled = batch.masked_labels != 0
    shown = np.take_along_axis(batch.input_ids, batch.masked_positions, axis=1)
    assert (shown[filled] == MASK).all()
    assert ObjectiveConfig(name="rtd", max_gram=3).max_gram == 3
