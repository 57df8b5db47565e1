"""The order of the samples: every chunk once an epoch, and a pure function of seed and global sample."""

import math
from itertools import pairwise

import numpy as np
import pytest

from megadeberta.data.counter_random import stream_key
from megadeberta.data.sample_order import SampleOrder, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 100, 101, 4096, 65537])
def test_permute_is_a_bijection(size: int) -> None:
    permuted = permute(np.arange(size), size, stream_key(1))
    assert np.array_equal(np.sort(permuted), np.arange(size))


def test_permute_reaches_every_index_of_a_trillion() -> None:
    size = 10**12 + 39
    indices = np.concatenate([np.arange(50_000), np.arange(size - 50_000, size)])
    permuted = permute(indices, size, stream_key(1))
    assert len(np.unique(permuted)) == len(indices)
    assert permuted.min() >= 0
    assert permuted.max() < size
    # The standard error of the mean of 10^5 uniform draws is 0.0009 of the size.
    assert permuted.mean() / size == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_of_a_few_chunks_is_equally_likely(size: int) -> None:
    draws = 60_000
    keys = stream_key(3, np.arange(draws))
    orders = np.stack([permute(np.full(draws, index), size, keys) for index in range(size)], axis=1)
    counts = np.bincount(orders @ (size ** np.arange(size)))
    counts = counts[counts > 0]
    assert len(counts) == math.factorial(size)
    expected = draws / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_do_not_stay_neighbours() -> None:
    size = 10_000
    permuted = permute(np.arange(size), size, stream_key(4))
    # 2 / size of the random pairs are adjacent: 2 expected, Poisson.
    assert np.count_nonzero(np.abs(np.diff(permuted)) == 1) < 12
    assert abs(np.corrcoef(np.arange(size), permuted)[0, 1]) < 5 / size**0.5


def test_order_never_changes() -> None:
    epochs, chunks = SampleOrder(1234, 10).locate(np.arange(20))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert chunks.tolist() == [0, 7, 3, 5, 9, 8, 1, 2, 6, 4, 5, 8, 3, 7, 9, 6, 1, 0, 2, 4]


def test_each_epoch_has_every_chunk_once_and_an_order_of_its_own() -> None:
    size = 1000
    epochs, chunks = SampleOrder(5, size).locate(np.arange(4 * size))
    orders = [chunks[epochs == epoch] for epoch in range(4)]
    assert all(np.array_equal(np.sort(order), np.arange(size)) for order in orders)
    # Two random orders agree in one place on average.
    assert all(np.count_nonzero(first == second) < 10 for first, second in pairwise(orders))


def test_order_depends_on_the_seed() -> None:
    first, second = (SampleOrder(seed, 1000).locate(np.arange(1000))[1] for seed in (1, 2))
    assert np.count_nonzero(first == second) < 10


def test_a_sample_does_not_depend_on_what_is_asked_with_it() -> None:
    order = SampleOrder(6, 77)
    together = order.locate(np.arange(300))
    alone = [order.locate(np.array([sample])) for sample in range(300)]
    assert [int(chunk[0]) for _, chunk in alone] == together[1].tolist()
    assert [int(epoch[0]) for epoch, _ in alone] == together[0].tolist()
