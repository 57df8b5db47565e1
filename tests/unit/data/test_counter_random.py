"""Counter-based random numbers: fixed forever, and as good as masking and shuffling need."""

import numpy as np
import pytest

from megadeberta.data.counter_random import integers, random_words, stream_key, uniform

# 2**18 draws: standard errors of mean, lag correlation and share are below 0.002; the limits are 5 of them.
DRAWS = 2**18
COUNTERS = np.arange(DRAWS)


def test_words_are_those_published_for_splitmix64() -> None:
    words = random_words(np.array(1234567, dtype=np.uint64), np.arange(5))
    # The check values of the C implementation for seed 1234567.
    assert words.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_keys_never_change() -> None:
    assert int(stream_key(1234, "mask", 7, 42)) == 17679076343925293634
    assert stream_key(1234, "mask", np.array([7, 8]), np.array([42, 42])).tolist() == [
        17679076343925293634,
        4134006890792017338,
    ]


def test_a_key_array_equals_the_keys_one_by_one() -> None:
    epochs, chunks = np.array([0, 0, 3]), np.array([5, 6, 5])
    one_by_one = [int(stream_key(9, "mask", int(e), int(c))) for e, c in zip(epochs, chunks, strict=True)]
    assert stream_key(9, "mask", epochs, chunks).tolist() == one_by_one


def test_keys_of_permuted_extended_and_other_words_all_differ() -> None:
    words = [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0), ("a",), ("b",), ("a", 0), (2**63,), (-1,)]
    keys = {int(stream_key(seed, *rest)) for seed in (0, 1, 2**63 - 1) for rest in words}
    assert len(keys) == 3 * len(words)


def test_uniform_has_the_mean_and_the_spread_of_a_uniform_variable() -> None:
    draws = uniform(stream_key(1), COUNTERS)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / DRAWS) ** 0.5)
    assert draws.var() == pytest.approx(1 / 12, abs=5 * (1 / 180 / DRAWS) ** 0.5)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 511])
def test_draws_of_one_stream_are_uncorrelated(lag: int) -> None:
    draws = uniform(stream_key(2), COUNTERS)
    assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 5 / DRAWS**0.5


def test_streams_of_neighbouring_seeds_are_uncorrelated() -> None:
    first, second = uniform(stream_key(3), COUNTERS), uniform(stream_key(4), COUNTERS)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / DRAWS**0.5


def test_first_draws_of_neighbouring_streams_are_uncorrelated() -> None:
    draws = uniform(stream_key(5, "mask", COUNTERS), np.array(0))
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / DRAWS**0.5


@pytest.mark.parametrize("bound", [2, 10, 1000])
def test_integers_are_equally_frequent(bound: int) -> None:
    counts = np.bincount(integers(stream_key(6), COUNTERS, bound), minlength=bound)
    assert len(counts) == bound
    expected = DRAWS / bound
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = bound - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_every_bit_of_a_word_is_set_half_of_the_time() -> None:
    words = random_words(stream_key(8), COUNTERS)
    shares = [float(((words >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(64)]
    assert shares == pytest.approx([0.5] * 64, abs=5 * 0.5 / DRAWS**0.5)


def test_keys_and_counters_broadcast() -> None:
    keys = stream_key(1, np.arange(3))
    draws = uniform(keys[:, None], np.arange(4))
    assert draws.shape == (3, 4)
    assert draws[2, 3] == uniform(keys[2], np.array(3))
