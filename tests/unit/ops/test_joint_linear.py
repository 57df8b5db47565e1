"""Several linear maps of one input in one autograd function, against the maps one by one."""

import pytest
import torch
from torch import Tensor, nn

from megadeberta.model.joint_linear import JointLinear


def _layers(dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(6, 4, dtype=dtype), nn.Linear(6, 5, bias=False, dtype=dtype), nn.Linear(6, 3, dtype=dtype)]


def _gradients(outputs: tuple[Tensor, ...], hidden: Tensor, layers: list[nn.Linear]) -> tuple[Tensor, ...]:
    loss = sum((number + 1) * output.float().square().sum() for number, output in enumerate(outputs))
    return torch.autograd.grad(loss, [hidden, *(p for layer in layers for p in layer.parameters())])


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_and_gradients_equal_separate_layers(count: int) -> None:
    layers = _layers()[:count]
    hidden = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    found, expected = JointLinear()(hidden, *layers), tuple(layer(hidden) for layer in layers)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for ours, theirs in zip(_gradients(found, hidden, layers), _gradients(expected, hidden, layers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # the loss is summed in fp32


def test_under_autocast_the_maps_run_in_bf16_and_the_gradients_are_fp32() -> None:
    layers = _layers(torch.float32)
    hidden = torch.randn(2, 3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = JointLinear()(hidden, *layers), tuple(layer(hidden) for layer in layers)
    assert all(output.dtype == torch.bfloat16 for output in found)
    for ours, theirs in zip(_gradients(found, hidden, layers), _gradients(expected, hidden, layers), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)  # sums of bf16 in another order


def test_torch_compile_keeps_it_whole() -> None:
    layers = _layers()
    hidden = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    project = JointLinear()
    whole = torch.compile(lambda rows: project(rows, *layers), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        _gradients(whole(hidden), hidden, layers), _gradients(project(hidden, *layers), hidden, layers), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_weights_are_read_from_where_they_are_now() -> None:
    """As after ``load_state_dict(assign=True)``."""
    (layer, *_) = _layers()
    project = JointLinear()
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    (output,) = project(torch.ones(2, 6, dtype=torch.float64), layer)
    torch.testing.assert_close(output, layer.bias.expand(2, -1))
