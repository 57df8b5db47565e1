"""LayerNorm(dropout(branch) + residual): every implementation against float64, the same bits dropped, what is kept.

Shapes: B batch · L length · D columns.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from megadeberta.ops.hidden_dropout import kept_columns
from megadeberta.ops.residual_norm import IMPLEMENTATIONS, residual_layer_norm

EPS = 1e-7
NAMES = ("result", "branch", "residual", "weight", "bias")
# fp32: sums over a row of some hundred numbers. bf16: 8 bits, in and out.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def _run(
    shape: tuple[int, ...], *, implementation: str, dtype: torch.dtype, probability: float, seed: int = 0
) -> list[Tensor]:
    """Result and all gradients."""
    generator = torch.Generator().manual_seed(seed)
    size = shape[-1:]
    drawn = [
        torch.randn(s, generator=generator, dtype=torch.float64).to(torch.bfloat16).double()
        for s in (shape, shape, size, size, shape)
    ]
    *inputs, upstream = (tensor.to(dtype) for tensor in drawn)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    keys = torch.randint(-(2**62), 2**62, shape[:-1], generator=generator)
    result = residual_layer_norm(*inputs, eps=EPS, keys=keys, probability=probability, implementation=implementation)
    return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]


def _largest_error(shape: tuple[int, ...], *, implementation: str, dtype: torch.dtype, **options) -> tuple[float, str]:
    expected = _run(shape, implementation="torch", dtype=torch.float64, **options)
    found = _run(shape, implementation=implementation, dtype=dtype, **options)
    pairs = zip(found, expected, NAMES, strict=True)
    return max((float((a - b).norm() / b.norm()), name) for a, b, name in pairs)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 5, 8]),
    size=st.sampled_from([8, 24, 96, 131]),
    probability=st.sampled_from([0.0, 0.1, 0.5]),
    implementation=st.sampled_from(["cpu", "triton"]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_every_implementation_equals_torch(batch, length, size, probability, implementation, dtype, seed) -> None:
    error, where = _largest_error(
        (batch, length, size), implementation=implementation, dtype=dtype, probability=probability, seed=seed
    )
    assert error <= TOLERANCE[dtype], where


def test_torch_is_the_layer_norm_of_the_sum() -> None:
    torch.manual_seed(0)
    branch, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    weight, bias, keys = torch.randn(8), torch.randn(8), torch.arange(6).view(2, 3)
    kept = kept_columns(keys, 8, probability=0.25)  # exactly 64 of 256
    expected = functional.layer_norm(branch * kept / 0.75 + residual, (8,), weight, bias, EPS)
    for implementation in IMPLEMENTATIONS:
        found = residual_layer_norm(
            branch, residual, weight, bias, eps=EPS, keys=keys, probability=0.25, implementation=implementation
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7])
def test_weight_and_bias_gradients_are_summed_in_two_stages_to_the_same_bits(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megadeberta.ops import triton_residual_norm

    monkeypatch.setattr(triton_residual_norm, "BACKWARD_PROGRAMS", 3)  # 7 rows: 3, 3 and 1
    error, where = _largest_error((rows, 40), implementation="triton", dtype=torch.float32, probability=0.1)
    assert error <= TOLERANCE[torch.float32], where
    options = {"implementation": "triton", "dtype": torch.float32, "probability": 0.1}
    for first, second in zip(_run((rows, 40), **options), _run((rows, 40), **options), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("implementation", ["cpu", "triton"])
def test_the_sum_is_all_that_is_kept_of_the_size_of_the_hidden_states(implementation: str) -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    branch, residual = (torch.randn(4, 32, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(32, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        residual_layer_norm(
            branch,
            residual,
            weight,
            bias,
            eps=EPS,
            keys=torch.arange(4),
            probability=0.1,
            implementation=implementation,
        )
    assert [tuple(t.shape) for t in kept if t.numel() == branch.numel()] == [(4, 32)]
