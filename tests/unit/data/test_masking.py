"""N-gram masking: shares, whole words, n-gram lengths, and nothing that depends on the batch."""

import hashlib
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.masking import MAX_WORD_PIECES, MaskedBatch, MlmMasker, find_units, tile_segments
from megadeberta.data.tokenizer import CLS_ID, PAD_ID, SEP_ID, UNK_ID, PieceKind

PIECES = 1000
MASK_ID = PIECES
# Ids from 700 on are continuations: a word has 1.4 pieces on average, as in English with 32k pieces.
KINDS = np.full(PIECES + 1, PieceKind.WORD_START, np.uint8)
KINDS[700:PIECES] = PieceKind.CONTINUATION
KINDS[[PAD_ID, CLS_ID, SEP_ID, UNK_ID, MASK_ID]] = PieceKind.SPECIAL
PER_TOKEN = ObjectiveConfig(max_gram=1, whole_word=False)
WORDS = ObjectiveConfig(max_gram=3)


def make_sequences(count: int, length: int, *, unknown: float = 0.0) -> NDArray[np.int64]:
    """[CLS] random pieces [SEP], full, with a share of [UNK]."""
    generator = np.random.Generator(np.random.PCG64(1))
    tokens = generator.integers(4, PIECES, (count, length))
    tokens[generator.random((count, length)) < unknown] = UNK_ID
    tokens[:, 0], tokens[:, -1] = CLS_ID, SEP_ID
    return tokens


def mask(tokens: NDArray[np.int64], objective: ObjectiveConfig, *, seed: int = 1) -> MaskedBatch:
    masker = MlmMasker(objective, KINDS, mask_id=MASK_ID)
    return masker(tokens, stream_key(seed, "mask", np.arange(len(tokens))))


def chosen(batch: MaskedBatch) -> NDArray[np.bool_]:
    """Whether each token is a target: ``[B, L]``."""
    is_chosen = np.zeros(batch.input_ids.shape, bool)
    rows, slots = np.nonzero(batch.masked_labels)
    is_chosen[rows, batch.masked_positions[rows, slots]] = True
    return is_chosen


@pytest.mark.parametrize("length", [8, 12, 30, 128, 512])
def test_per_token_masking_hides_the_share_of_the_candidates_rounded_up_or_down(length: int) -> None:
    share = 0.15 * (length - 2)
    counts = np.count_nonzero(mask(make_sequences(200, length), PER_TOKEN).masked_labels, axis=1)
    assert set(counts) == {math.floor(share), math.ceil(share)}


def test_whole_words_pass_or_miss_the_share_by_less_than_a_word() -> None:
    tokens = make_sequences(400, 512)
    starts = find_units(KINDS[tokens], whole_word=True).opens
    longest = np.diff(np.flatnonzero(starts)).max()
    counts = np.count_nonzero(mask(tokens, WORDS).masked_labels, axis=1)
    assert 0.15 * 510 - longest < counts.min() < 0.15 * 510 < counts.max() < 0.15 * 510 + longest


def test_padding_does_not_count_towards_the_share() -> None:
    tokens = make_sequences(50, 128)
    tokens[:, 39] = SEP_ID
    tokens[:, 40:] = PAD_ID
    batch = mask(tokens, PER_TOKEN)
    assert set(np.count_nonzero(batch.masked_labels, axis=1)) == {5, 6}  # of 38 candidates


def test_targets_are_80_percent_masked_10_random_10_kept() -> None:
    tokens = make_sequences(1000, 512)
    batch = mask(tokens, WORDS)
    targets = chosen(batch)
    shown, original = batch.input_ids[targets], tokens[targets]
    error = 5 * (0.25 / targets.sum()) ** 0.5
    assert np.mean(shown == MASK_ID) == pytest.approx(0.8, abs=error)
    # One random piece in 996 is the original.
    assert np.mean((shown != MASK_ID) & (shown != original)) == pytest.approx(0.1 * 995 / 996, abs=error)
    assert np.mean(shown == original) == pytest.approx(0.1 + 0.1 / 996, abs=error)


def test_100_0_0_masks_every_target_and_0_0_100_none() -> None:
    tokens = make_sequences(20, 128)
    for mask_prob, shown in ((1.0, MASK_ID), (0.0, None)):
        batch = mask(tokens, ObjectiveConfig(mask_token_prob=mask_prob, random_token_prob=0.0))
        targets = chosen(batch)
        assert np.array_equal(
            batch.input_ids[targets], tokens[targets] if shown is None else np.full(targets.sum(), shown)
        )


def test_replacements_are_all_ordinary_pieces_equally_often() -> None:
    tokens = make_sequences(1500, 512)
    batch = mask(tokens, ObjectiveConfig(mask_token_prob=0.0, random_token_prob=1.0))
    counts = np.bincount(batch.input_ids[chosen(batch)], minlength=PIECES + 1)
    assert counts[[PAD_ID, CLS_ID, SEP_ID, UNK_ID, MASK_ID]].sum() == 0
    ordinary = counts[4:PIECES]
    freedom = len(ordinary) - 1
    expected = ordinary.sum() / len(ordinary)
    assert abs(((ordinary - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5


def test_special_tokens_are_never_targets() -> None:
    tokens = make_sequences(300, 128, unknown=0.3)
    tokens[:, 100] = MASK_ID
    batch = mask(tokens, ObjectiveConfig(mask_rate=0.9))
    targets = chosen(batch)
    assert targets.any(axis=0)[1:100].all()
    assert KINDS[tokens[targets]].min() > PieceKind.SPECIAL


def test_a_sequence_without_candidates_has_no_targets() -> None:
    tokens = np.full((2, 16), UNK_ID)
    tokens[:, 0], tokens[:, -1] = CLS_ID, SEP_ID
    batch = mask(tokens, WORDS)
    assert np.array_equal(batch.input_ids, tokens)
    assert batch.masked_labels.shape == (2, 8)
    assert not batch.masked_labels.any()


def test_a_single_candidate_is_a_target_or_none() -> None:
    tokens = np.tile([CLS_ID, 5, SEP_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID], (2000, 1))
    batch = mask(tokens, ObjectiveConfig(mask_token_prob=1, random_token_prob=0))
    hidden = batch.masked_labels[:, 0] == 5
    assert hidden.mean() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 2000) ** 0.5)
    assert np.array_equal(batch.masked_positions, np.where(hidden, 1, 0)[:, None] * np.eye(1, 8, dtype=int))
    assert np.array_equal(batch.masked_labels, np.where(hidden, 5, 0)[:, None] * np.eye(1, 8, dtype=int))
    assert np.array_equal(batch.input_ids[:, 1], np.where(hidden, MASK_ID, 5))
    assert np.array_equal(np.delete(batch.input_ids, 1, axis=1), np.delete(tokens, 1, axis=1))


def test_slots_hold_the_original_ids_in_ascending_positions() -> None:
    tokens = make_sequences(100, 128)
    batch = mask(tokens, WORDS)
    assert batch.masked_labels.shape[1] % 8 == 0
    for ids, shown, positions, labels in zip(
        tokens, batch.input_ids, batch.masked_positions, batch.masked_labels, strict=True
    ):
        count = np.count_nonzero(labels)
        assert labels[:count].all()
        assert not labels[count:].any()
        assert not positions[count:].any()
        assert (np.diff(positions[:count]) > 0).all()
        assert np.array_equal(ids[positions[:count]], labels[:count])
        assert np.array_equal(np.delete(shown, positions[:count]), np.delete(ids, positions[:count]))


def test_words_are_masked_entirely_or_not_at_all() -> None:
    tokens = make_sequences(300, 256, unknown=0.02)
    targets = chosen(mask(tokens, WORDS))
    units = find_units(KINDS[tokens], whole_word=True)
    number = np.cumsum(units.opens, axis=1) - 1
    split = 0
    for is_candidate, word, is_target in zip(units.is_candidate, number, targets, strict=True):
        sizes = np.bincount(word[is_candidate])
        hidden = np.bincount(word[is_target], minlength=len(sizes))
        split += np.count_nonzero((hidden != 0) & (hidden != sizes))
    assert split == 0


def test_units_are_words_cut_at_specials_and_after_16_pieces() -> None:
    special, piece, start = PieceKind.SPECIAL, PieceKind.CONTINUATION, PieceKind.WORD_START
    kinds = [special, piece, piece, start, piece, special, piece, start, start] + [piece] * 17 + [special]
    units = find_units(np.array([kinds], np.uint8), whole_word=True)
    assert np.flatnonzero(units.opens).tolist() == [1, 3, 6, 7, 8, 24]
    assert np.array_equal(units.is_candidate[0], np.array(kinds) != special)


def test_text_without_spaces_is_not_masked_whole() -> None:
    tokens = np.full((200, 128), 900)  # one word-start piece, then only continuations, as in Chinese
    tokens[:, 0], tokens[:, 1], tokens[:, -1] = CLS_ID, 5, SEP_ID
    counts = np.count_nonzero(mask(tokens, WORDS).masked_labels, axis=1)
    assert counts.max() < 0.15 * 126 + MAX_WORD_PIECES
    assert counts.min() > 0.15 * 126 - MAX_WORD_PIECES


def test_without_whole_words_every_token_is_a_unit() -> None:
    kinds = KINDS[make_sequences(2, 32)]
    assert np.array_equal(find_units(kinds, whole_word=False).opens, kinds != PieceKind.SPECIAL)


@pytest.mark.parametrize("max_gram", [1, 2, 3, 5])
def test_lengths_of_n_grams_follow_one_over_n(max_gram: int) -> None:
    opens = np.ones((2000, 100), bool)
    segments = tile_segments(opens, stream_key(1, np.arange(2000))[:, None], max_gram=max_gram)
    assert (np.isin(np.diff(segments, axis=1), (0, 1))).all()
    assert not segments[:, 0].any()
    # Exactly the segments that start before unit 50: which they are is known before their length is drawn (a stopping
    # time), so by Wald's identity the sample is unbiased.
    sizes = np.concatenate([np.bincount(row)[: row[49] + 1] for row in segments])
    shares = np.bincount(sizes, minlength=max_gram + 1)[1:] / len(sizes)
    weights = 1 / np.arange(1, max_gram + 1)
    assert shares == pytest.approx(weights / weights.sum(), abs=5 * 0.5 / len(sizes) ** 0.5)


def test_lengths_of_masked_runs_of_words_grow_with_max_gram() -> None:
    tokens = make_sequences(400, 512)
    means = []
    for max_gram in (1, 3):
        targets = chosen(mask(tokens, ObjectiveConfig(max_gram=max_gram, whole_word=False))).astype(int)
        runs = np.count_nonzero(np.diff(targets, axis=1) == 1)
        means.append(targets.sum() / runs)
    # Single tokens at 15 %: runs of 1 / 0.85. n-grams: mean (1 + 1 + 1) / (11 / 6) = 1.64 before neighbours join.
    assert means[0] == pytest.approx(1 / 0.85, abs=0.02)
    assert means[1] == pytest.approx(1.64 / 0.85, abs=0.05)


def test_a_mask_does_not_depend_on_the_rest_of_the_batch() -> None:
    tokens = make_sequences(70, 512)
    keys = stream_key(1, "mask", np.arange(70))
    masker = MlmMasker(WORDS, KINDS, mask_id=MASK_ID)
    whole = masker(tokens, keys)
    for row in (0, 1, 31, 32, 69):
        alone = masker(tokens[row : row + 1], keys[row : row + 1])
        together = whole.rows(row, row + 1)
        assert np.array_equal(alone.input_ids, together.input_ids)
        assert np.array_equal(alone.masked_positions, together.masked_positions)
        assert np.array_equal(alone.masked_labels, together.masked_labels)


def test_masks_depend_on_the_key() -> None:
    tokens = make_sequences(50, 512)
    first, second = (chosen(mask(tokens, WORDS, seed=seed)) for seed in (1, 2))
    # Independent masks share 15 % of their targets.
    assert np.mean(second[first]) == pytest.approx(0.15, abs=0.03)


def test_masks_never_change() -> None:
    tokens = np.concatenate([[CLS_ID], np.arange(680, 718), [SEP_ID]])[None]
    batch = mask(tokens, WORDS, seed=1235)
    assert batch.masked_positions.tolist() == [[4, 5, 6, 8, 9, 0, 0, 0]]
    assert batch.input_ids[0, [4, 5, 6, 8, 9]].tolist() == [MASK_ID, MASK_ID, 563, 687, MASK_ID]


def test_masks_of_text_with_spaces_never_change() -> None:
    batch = mask(make_sequences(200, 128, unknown=0.05), WORDS)
    digest = hashlib.sha256(b"".join(a.tobytes() for a in (batch.input_ids, batch.masked_positions)))
    assert digest.hexdigest()[:16] == "7b4fcfd470ee4ee7"
