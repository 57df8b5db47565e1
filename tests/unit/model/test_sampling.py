"""Draws from the generator: right frequencies, and the same whatever else is in the batch."""

import numpy as np
import pytest
import torch

from megadeberta.data.counter_random import random_words
from megadeberta.ops import gumbel_max as definition
from megadeberta.ops.gumbel_max import exponential, gumbel_max
from megadeberta.ops.split_mix import hash_words


def test_words_are_those_of_the_data_pipeline() -> None:
    keys = np.array([0, 1, 2**63 + 5, 2**64 - 1], np.uint64)[:, None]
    counters = np.array([0, 1, 7, 128_000], np.int64)
    expected = random_words(keys, counters).view(np.int64)
    found = hash_words(torch.from_numpy(keys.view(np.int64)), torch.from_numpy(counters))
    assert found.tolist() == expected.tolist()


def test_frequencies_are_those_of_the_softmax() -> None:
    draws = 200_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    drawn = gumbel_max(logits.expand(draws, 5), hash_words(torch.tensor(99), torch.arange(draws)))
    found = torch.bincount(drawn, minlength=5) / draws
    expected = logits.softmax(0)
    # Five standard deviations of a binomial share.
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt()).all()


def test_rare_ids_of_a_large_vocabulary_are_drawn_as_often_as_they_should() -> None:
    vocabulary, draws = 20_000, 400
    logits = torch.zeros(draws, vocabulary)
    drawn = gumbel_max(logits, hash_words(torch.tensor(7), torch.arange(draws)))
    # Uniform: the mean id of n draws has a standard deviation of V / sqrt(12 n), and hardly any id comes twice.
    assert abs(drawn.double().mean() - vocabulary / 2) < 5 * vocabulary / (12 * draws) ** 0.5
    assert drawn.unique().numel() > 0.95 * draws


def test_a_draw_depends_on_its_own_key_and_logits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, keys = torch.randn(3, 4, 50, generator=generator), hash_words(torch.tensor(3), torch.arange(12)).view(3, 4)
    whole = gumbel_max(logits, keys)
    monkeypatch.setattr(definition, "_CHUNK_ELEMENTS", 100)  # two rows at a time
    assert torch.equal(gumbel_max(logits, keys), whole)
    assert torch.equal(gumbel_max(logits[1:2, 2:3], keys[1:2, 2:3]), whole[1:2, 2:3])


def test_noise_is_finite_at_both_ends_of_the_words() -> None:
    words = torch.tensor([0, 1, -1, -(2**63), 2**63 - 1])
    noise = exponential(words)
    assert torch.isfinite(noise).all() and (noise > 0).all()
    assert noise[0] == pytest.approx(0.5 * 2.0**-53)
