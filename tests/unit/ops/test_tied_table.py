"""The gradient of a table that is read by rows: frequent rows keep their digits, in the same order every time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.ops.tied_table import TiedGradient, lookup

FREQUENT, OFTEN = 3, 4000


def _gradient(dtype: torch.dtype, *, tied: bool, padding: int | None = 0) -> tuple[Tensor, Tensor]:
    """Error and exact values of that of 12 rows; row 3 is read 4 000 times, as [MASK] is in a micro batch."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 8, generator=generator).to(dtype).requires_grad_()
    ids = torch.cat([torch.full((OFTEN,), FREQUENT), torch.tensor([0, 1, 1, 11])]).view(4, -1)
    upstream = (1 + 0.1 * torch.rand(*ids.shape, 8, generator=generator)).to(dtype)
    joint = TiedGradient(table) if tied else None
    rows = lookup(table, ids, padding=padding, tied=joint)
    if joint is not None:
        joint.leave(torch.full_like(table, 0.5))
    (gradient,) = torch.autograd.grad(rows, table, upstream)
    exact = table.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(functional.embedding(ids, exact, padding_idx=padding), exact, upstream.double())
    return gradient.double() - expected - (0.5 if tied else 0.0), expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", [0, None])
def test_a_row_that_is_read_thousands_of_times_in_bf16_is_rounded_once(tied: bool, padding: int | None) -> None:
    error, expected = _gradient(torch.bfloat16, tied=tied, padding=padding)
    # 2 ** -9 is the rounding of one number; added one by one in bf16 the sum would be some percent off.
    assert float((error / expected.clamp_min(1.0)).abs().max()) < 5e-3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_are_summed_in_their_own_precision(dtype: torch.dtype, tied: bool) -> None:
    error, expected = _gradient(dtype, tied=tied)
    assert float((error / expected.clamp_min(1.0)).abs().max()) < (1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    first, second = (_gradient(dtype, tied=True)[0] for _ in range(2))
    assert torch.equal(first, second)
