"""NVIDIA apex's kernels, with a stand-in for the package: found only whole, taken only where faster or asked for."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

from megadeberta.errors import ConfigError
from megadeberta.model import apex_switch
from megadeberta.model.apex_switch import select_apex
from megadeberta.ops import apex_kernels
from megadeberta.ops.apex_kernels import find_apex, time_share, use_layer_norm

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _layer_norm(hidden, weight, bias, normalized_shape, eps):
    return functional.layer_norm(hidden, normalized_shape, weight, bias, eps)


@pytest.fixture
def fake_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that NVIDIA's build has."""
    for name in ("apex", "apex.normalization", "apex.normalization.fused_layer_norm", "fused_layer_norm_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["apex.normalization.fused_layer_norm"].fused_layer_norm_affine = _layer_norm


def test_a_package_of_that_name_without_the_kernels_is_not_apex(fake_apex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_apex() is not None
    monkeypatch.setitem(sys.modules, "fused_layer_norm_cuda", None)  # importing it fails
    assert find_apex() is None


@pytest.mark.parametrize(("share", "line"), [(0.8, "LayerNorm"), (1.02, "off")])
def test_auto_takes_it_only_where_it_is_measured_to_be_faster(
    fake_apex, monkeypatch: pytest.MonkeyPatch, share: float, line: str
) -> None:
    monkeypatch.setattr(apex_switch, "time_share", lambda apex, device: share)
    model = nn.Sequential(nn.LayerNorm(8))
    said = select_apex(model, "auto", CUDA)
    assert said == f"apex auto: {line}, its LayerNorm takes {share:.2f} of torch's time"
    assert (type(model[0]) is not nn.LayerNorm) == (line != "off")


def test_layer_norms_keep_their_parameters_and_results(fake_apex) -> None:
    torch.manual_seed(0)
    model, hidden = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8, 1e-7)), torch.randn(3, 8)
    before, names = model(hidden), list(model.state_dict())
    use_layer_norm(model, find_apex())
    assert type(model[1]) is not nn.LayerNorm
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(hidden), before)


def test_the_share_of_time_is_a_ratio_of_the_two_kernels(fake_apex, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    ours = torch.nn.functional.layer_norm

    def taking(seconds: float, *arguments):
        clock[0] += seconds
        return ours(*arguments)

    monkeypatch.setattr(apex_kernels, "_ROWS", 8)
    monkeypatch.setattr(apex_kernels.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *arguments: taking(4.0, *arguments))
    apex = apex_kernels.Apex(lambda hidden, weight, bias, shape, eps: taking(3.0, hidden, shape, weight, bias, eps))
    assert time_share(apex, CPU) == pytest.approx(0.75)


def test_what_cannot_be_had_is_refused_and_auto_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apex_switch, "find_apex", lambda: None)
    with pytest.raises(ConfigError, match=r"training\.apex=on: NVIDIA's apex .*not installed.*PyPI.*auto"):
        select_apex(nn.LayerNorm(4), "on", CUDA)
    with pytest.raises(ConfigError, match=r"training\.apex=on needs a GPU.*cpu.*auto"):
        select_apex(nn.LayerNorm(4), "on", CPU)
    for switch, device in (("auto", CUDA), ("auto", CPU), ("off", CUDA)):
        assert select_apex(nn.LayerNorm(4), switch, device) == f"apex {switch}: off"
