"""Dropout of hidden states: the bytes of the words, the share that is kept, the gradient."""

import numpy as np
import pytest
import torch

from megadeberta.data.counter_random import random_words
from megadeberta.ops.hidden_dropout import hidden_dropout, kept_columns, table_dropout


def test_bytes_are_those_of_the_words_from_the_lowest_on() -> None:
    keys = torch.tensor([3, -5])
    words = random_words(keys.numpy().view(np.uint64)[:, None], np.arange(3))
    expected = words.astype("<u8").view(np.uint8)[:, :21] >= 77  # 0.3 * 256 = 76.8
    assert kept_columns(keys, 21, probability=0.3).tolist() == expected.tolist()


def test_the_rounded_share_is_dropped_and_the_expectation_kept() -> None:
    keys = torch.arange(2000)
    dropped = hidden_dropout(torch.ones(2000, 512), keys, probability=0.1)
    is_kept = (dropped != 0).double()
    # A million draws: five standard deviations of the share are 1.5e-3.
    assert abs(is_kept.mean().item() - 230 / 256) < 1.5e-3
    assert dropped.max().item() == pytest.approx(256 / 230)
    # 2000 and 512 draws each: six standard deviations.
    assert (is_kept.mean(0) - 230 / 256).abs().max() < 6 * 0.302 / 2000**0.5
    assert (is_kept.mean(1) - 230 / 256).abs().max() < 6 * 0.302 / 512**0.5


def test_gradient_goes_through_what_was_kept() -> None:
    hidden = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    keys = torch.arange(4)
    assert torch.autograd.gradcheck(lambda h: hidden_dropout(h, keys, probability=0.5), hidden)


def test_a_probability_that_rounds_to_nothing_drops_nothing() -> None:
    hidden = torch.ones(2, 3)
    assert hidden_dropout(hidden, torch.arange(2), probability=0.001) is hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_table", [False, True])
def test_the_kernel_drops_the_same_elements_forward_and_backward(dtype: torch.dtype, of_table: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, upstream = (torch.randn(5, 77, generator=generator).to(dtype) for _ in range(2))
    found = []
    for implementation in ("torch", "triton"):
        source = hidden.clone().requires_grad_()
        options = {"probability": 0.3, "site": -(2**61) + 7, "implementation": implementation}
        if of_table:
            dropped = table_dropout(source, torch.tensor(2**40), **options)
        else:
            dropped = hidden_dropout(source, torch.arange(5), **options)
        (gradient,) = torch.autograd.grad(dropped, source, upstream)
        found.append((dropped.detach(), gradient))
    for plain, kernel in zip(*found, strict=True):
        assert torch.equal(plain == 0, kernel == 0) and 0.1 < (kernel == 0).double().mean() < 0.5
        torch.testing.assert_close(plain, kernel, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)


def test_layers_that_share_words_drop_by_their_site() -> None:
    keys = torch.arange(3)
    ones = torch.ones(3, 40)
    first, second = (hidden_dropout(ones, keys, probability=0.5, site=site) for site in (5, 6))
    assert not torch.equal(first, second)
    assert torch.equal(first, hidden_dropout(ones, keys ^ 5, probability=0.5))
