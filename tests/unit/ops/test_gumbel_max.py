"""Draws from a softmax: right frequencies, the same whatever else is in the batch, and the same by everyone.

Shapes: R rows · V vocabulary.
"""

import numpy as np
import pytest
import torch

from megadeberta.data.counter_random import random_words
from megadeberta.ops import cpu_gumbel_max
from megadeberta.ops import gumbel_max as definition
from megadeberta.ops.gumbel_max import best_ids, exponential, gumbel_max
from megadeberta.ops.logits import CPU_CODE, TORCH, TRITON
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


def _rows(vocabulary: int, *, rows: int = 5, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[R, V]`` and keys ``[R]``."""
    generator = torch.Generator().manual_seed(vocabulary)
    return scale * torch.randn(rows, vocabulary, generator=generator), hash_words(torch.tensor(3), torch.arange(rows))


def test_noise_is_the_logarithm_within_rounding() -> None:
    words = hash_words(torch.tensor(5), torch.arange(200_000))
    uniform = (((words >> 11) & (2**53 - 1)).double() + 0.5) * 2.0**-53
    exact = -torch.log1p(-uniform)
    found = exponential(words)
    assert ((found.double() - exact) / exact)[uniform < 0.99].abs().max() < 1e-6
    noise = definition.perturbed(torch.zeros(len(words)), words, 1.0)
    assert (noise.double() + exact.log())[uniform < 0.99].abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [7, 1024, 2999])
@pytest.mark.parametrize("implementation", [CPU_CODE, TRITON])
def test_every_implementation_draws_what_the_definition_says(
    implementation: str, vocabulary: int, temperature: float, dtype: torch.dtype
) -> None:
    logits, keys = _rows(vocabulary, scale=3.0)
    options = {"temperature": temperature, "first_id": 11}
    expected = best_ids(logits.to(dtype), keys, implementation=TORCH, **options)
    found = best_ids(logits.to(dtype), keys, implementation=implementation, **options)
    for ours, defined in zip(found, expected, strict=True):
        assert torch.equal(ours, defined)


@pytest.mark.parametrize("implementation", [TORCH, CPU_CODE, TRITON])
def test_of_equal_sums_the_lowest_id_is_drawn(implementation: str) -> None:
    logits, keys = _rows(2999)
    logits[:, [2700, 1500, 2100]] = 1e12  # at which noise is nothing
    assert gumbel_max(logits, keys, implementation=implementation).tolist() == [1500] * 5


def test_a_row_whose_candidates_do_not_suffice_is_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, keys = _rows(2999)
    logits[1, 7], logits[2, :2990], logits[3, 9] = float("inf"), float("-inf"), float("nan")
    expected = gumbel_max(logits, keys, implementation=TORCH)
    assert expected[1] == 7 and expected[2] >= 2990 and expected[3] == 9
    assert torch.equal(gumbel_max(logits, keys, implementation=CPU_CODE), expected)
    monkeypatch.setattr(cpu_gumbel_max, "_DEPTH", -20.0)  # then no row has any
    assert torch.equal(gumbel_max(logits, keys, implementation=CPU_CODE), expected)


def test_shards_of_a_vocabulary_draw_what_the_whole_draws() -> None:
    logits, keys = _rows(3000)
    values, ids = best_ids(logits, keys)
    parts = [best_ids(logits[:, start : start + 1500], keys, first_id=start) for start in (0, 1500)]
    shards, places = (torch.stack(each) for each in zip(*parts, strict=True))
    assert torch.equal(shards.max(0).values, values)
    assert torch.equal(places.gather(0, shards.argmax(0, keepdim=True)).squeeze(0), ids)
