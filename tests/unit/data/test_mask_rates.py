"""How often tokens are masked: at the recipe's rate, wherever they stand, in sequences of any length and kind.

Draws of one sequence depend on each other, those of two sequences do not: standard errors come from the spread over
sequences, and the number of sequences is such that four of them are below the 0.5 % that is allowed.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.masking import find_units, take_windows
from megadeberta.data.tokenizer import CLS_ID, PAD_ID, SEP_ID, PieceKind
from tests.unit.data.test_masking import KINDS, PIECES, chosen, make_sequences, mask

ALLOWED = 0.005
"""Of the rate."""
OBJECTIVES = {
    "tokens": {"max_gram": 1, "whole_word": False},
    "runs of tokens": {"max_gram": 3, "whole_word": False},
    "words": {"max_gram": 1},
    "runs of words": {"max_gram": 3},
    "long runs of words": {"max_gram": 8},
}


def relative_rate(counts: NDArray[np.int64], candidates: NDArray[np.int64], rate: float) -> float:
    """Rate over all sequences as a multiple of ``rate``; four standard errors must be below what is allowed."""
    error = (counts - rate * candidates).std() / (rate * candidates.mean() * len(counts) ** 0.5)
    assert 4 * error < ALLOWED
    return counts.sum() / (rate * candidates.sum())


@pytest.mark.parametrize("rate", [0.15, 0.2, 0.4])
@pytest.mark.parametrize(("length", "sequences"), [(32, 50_000), (64, 12_000), (128, 4000), (512, 400)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_rate_is_the_recipe_s(name: str, length: int, sequences: int, rate: float) -> None:
    sequences = round(sequences * (0.15 / rate) ** 2)
    batch = mask(make_sequences(sequences, length), ObjectiveConfig(mask_rate=rate, **OBJECTIVES[name]))
    counts = np.count_nonzero(batch.masked_labels, axis=1)
    assert relative_rate(counts, np.full(sequences, length - 2), rate) == pytest.approx(1, abs=ALLOWED)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_rate_is_the_recipe_s_in_short_sequences_and_in_every_document_of_packed_ones(name: str) -> None:
    """Rows ``[CLS] document [SEP] [CLS] document [SEP] [PAD]*``; short ones have one document and more padding."""
    generator = np.random.default_rng(3)
    tokens = make_sequences(10_000, 96)
    ends = np.add(generator.integers(1, 31, (len(tokens), 3)), [0, 31, 62])  # of the text of three documents
    short = generator.random(len(tokens)) < 0.5
    rows = np.arange(len(tokens))
    for first in (0, 1):
        tokens[rows, ends[:, first] + 1], tokens[rows, ends[:, first] + 2] = SEP_ID, CLS_ID
    last = np.where(short, ends[:, 0] + 1, 95)
    tokens[np.arange(96) > last[:, None]] = PAD_ID
    tokens[rows, last] = SEP_ID
    targets = chosen(mask(tokens, ObjectiveConfig(**OBJECTIVES[name])))
    is_candidate = KINDS[tokens] != PieceKind.SPECIAL
    document = np.cumsum(tokens == CLS_ID, axis=1)
    for part in (short[:, None] & is_candidate, *(~short[:, None] & is_candidate & (document == n) for n in (1, 2, 3))):
        held = part.any(axis=1)
        hidden, candidates = (targets & part)[held].sum(axis=1), part[held].sum(axis=1)
        error = (hidden - 0.15 * candidates).std() * len(hidden) ** 0.5 / candidates.sum()
        assert hidden.sum() / candidates.sum() == pytest.approx(0.15, abs=4 * error)


@pytest.mark.parametrize("length", [1, 7, 30, 126])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.9])
def test_every_token_is_in_exactly_the_rate_of_all_windows(length: int, rate: float) -> None:
    """Of words of 1 to 5 pieces in random order; windows begin at all multiples of 1/20."""
    generator = np.random.default_rng(4)
    kinds = np.where(generator.random(length) < 0.6, PieceKind.WORD_START, PieceKind.CONTINUATION).astype(np.uint8)
    units = find_units(kinds[None], whole_word=True)
    numbers = np.cumsum(units.opens[0]) - 1
    order = np.argsort(generator.permutation(numbers.max() + 1)[numbers], kind="stable")
    begins = np.arange(20 * length)[:, None] / 20
    rows = (len(begins), length)
    taken = take_windows(
        np.broadcast_to(order, rows),
        np.broadcast_to(units.offset, rows),
        np.full((len(begins), 1), length),
        begins=begins,
        rate=rate,
    )
    times = np.bincount(taken[taken < length], minlength=length)
    # A window that ends on a whole rank may be rounded to one more or less.
    assert times == pytest.approx(np.full(length, rate * len(begins)), abs=1)


def rates_of_positions(sequences: int, *, seed: int) -> NDArray[np.float64]:
    """Of 126 places, with runs of words: fraction of that many sequences in which each is masked."""
    tokens, times = make_sequences(min(sequences, 20_000), 128), np.zeros(128, np.int64)
    for part in range(-(-sequences // len(tokens))):
        generator = np.random.default_rng((seed, part))
        tokens[:, 1:-1] = generator.integers(4, PIECES, (len(tokens), 126))
        times += chosen(mask(tokens, ObjectiveConfig(max_gram=3), seed=seed + part)).sum(axis=0)
    return times[1:-1] / (len(tokens) * (part + 1))


def test_no_position_is_preferred() -> None:
    """160 000 sequences of 128. A prefix of n-grams in random order has the first three 3.4, 2.0, 0.9 % more often."""
    rates = rates_of_positions(160_000, seed=1)
    error = (0.15 * 0.85 / 160_000) ** 0.5
    assert np.abs(rates - 0.15).max() < 4 * error  # 126 comparisons
    for edge in (rates[0], rates[:3].mean(), rates[-1], rates[-3:].mean()):
        assert edge == pytest.approx(0.15, abs=2.5 * error)
    chi_squared = ((rates - 0.15) ** 2).sum() / error**2
    assert chi_squared < 126 + 4 * (2 * 126) ** 0.5


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_no_position_is_preferred_by_half_a_percent() -> None:
    """So many sequences that 0.5 % of the rate is four standard errors of each position; a minute."""
    rates = rates_of_positions(4_000_000, seed=100)
    assert np.abs(rates / 0.15 - 1).max() < ALLOWED
