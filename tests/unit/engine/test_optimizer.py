"""Adam without bias correction, and which parameters are decayed."""

import pytest
import torch
from torch import nn

from megadeberta.config.training import RULES, OptimizerConfig, OptimizerName
from megadeberta.engine.library_optimizer import HeldTensor, LibraryOptimizer
from megadeberta.engine.optimizer import (
    AdamWithoutBiasCorrection,
    GroupKey,
    build_optimizer,
    group_key,
    parameter_groups,
    state_format,
)
from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from tests.unit.model.golden import golden_config


def test_adam_without_bias_correction_gives_the_reference_values() -> None:
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = AdamWithoutBiasCorrection([parameter], lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
    values, first, second = [], [], []
    for gradient in (0.1, -0.2, 0.3):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(parameter.item())
        first.append(optimizer.state[parameter]["exp_avg"].item())
        second.append(optimizer.state[parameter]["exp_avg_sq"].item())
    # torch decays before the update and the reference within it: they differ by lr^2 * wd * update, about 3e-8.
    assert values == pytest.approx([0.996828722, 0.998374324, 0.996665360], abs=1e-7)
    assert first == pytest.approx([0.01, -0.011, 0.0201], abs=1e-12)
    assert second == pytest.approx([1e-5, 4.999e-5, 1.3994e-4], abs=1e-9)


def test_bias_correction_is_the_default_and_can_be_switched_off() -> None:
    model = nn.Linear(2, 2)
    corrected = build_optimizer(model, OptimizerConfig(lr=1e-3), offloaded=False)
    assert type(corrected) is torch.optim.AdamW
    plain = build_optimizer(model, OptimizerConfig(lr=1e-3, bias_correction=False), offloaded=False)
    assert type(plain) is AdamWithoutBiasCorrection


@pytest.mark.parametrize("bias_correction", [True, False])
def test_state_format_is_what_the_optimizer_keeps(bias_correction: bool) -> None:
    """Those of offloaded states are compared in tests/distributed/test_other_layout.py: they need a compiler."""
    config = OptimizerConfig(lr=1e-3, bias_correction=bias_correction)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, config, offloaded=False)
    kept = state_format(optimizer, model.weight)
    assert kept.moments == RULES["adamw"].moments  # what the plan counts
    for update in range(1, 4):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            assert set(state) == {"step", *kept.moments}
            assert all(state[name].shape == parameter.shape for name in kept.moments)
            assert kept.updates(state) == update
            step = kept.step(update, parameter.device)
            assert isinstance(step, torch.Tensor) and torch.equal(step, state["step"])
            assert step.dtype == state["step"].dtype


def test_an_optimizer_whose_state_nobody_described_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"what SGD keeps for a parameter is not known.*add it to STATE_FORMATS"):
        state_format(torch.optim.SGD(nn.Linear(1, 1).parameters()), torch.empty(0))


def test_biases_and_layer_norms_are_not_decayed_and_all_tables_are() -> None:
    model = WholeModel(token_model_layers(golden_config(enhanced_mask_decoder=True, conv_kernel_size=3)))
    decayed, plain = parameter_groups(model.named_parameters(), OptimizerConfig(lr=1e-3, weight_decay=0.01))
    decayed_ids = {id(p) for p in decayed["params"]}
    for name, parameter in model.named_parameters():
        is_norm_or_bias = name.endswith("bias") or "layer_norm" in name
        assert (id(parameter) not in decayed_ids) == is_norm_or_bias, name
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0.0
    for table in ("embeddings.word_embeddings", "relative.embedding", "mask_decoder.position_embeddings"):
        assert id(model.get_parameter(f"{table}.weight")) in decayed_ids


def _train_encoder(
    config: OptimizerConfig, *, is_half: bool = False, steps: int = 3, refused: int = -1
) -> dict[str, torch.Tensor]:
    """Weights of a model after steps on random gradients; step ``refused`` is not finite."""
    model = WholeModel(token_model_layers(golden_config(enhanced_mask_decoder=True, conv_kernel_size=3)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    optimizer = build_optimizer(model, config, offloaded=False, is_half=is_half)
    if isinstance(optimizer, LibraryOptimizer):
        held: dict[GroupKey, list[HeldTensor]] = {}
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            tensor = HeldTensor(parameter, 0, 0, parameter.numel(), shape, shape, 0, 0, None, None)
            held.setdefault(group_key(name, config), []).append(tensor)
        optimizer.place(held)
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.found_inf = torch.tensor(float(step == refused))
        optimizer.step()
    return dict(model.named_parameters())


def test_muon_is_for_the_matrices_of_the_encoder_and_adamw_for_the_rest() -> None:
    found, adamw = _train_encoder(OptimizerConfig(lr=1e-2, name="muon")), _train_encoder(OptimizerConfig(lr=1e-2))
    different = {name for name, weight in found.items() if not torch.equal(weight, adamw[name])}
    ends = ("_proj.weight", "self_attention.dense.weight", "feed_forward.up.weight", "feed_forward.down.weight")
    assert different == {name for name in found if name.endswith(ends)}


def test_muon_rounds_to_bf16_only_where_the_run_does() -> None:
    exact, rounded = (_train_encoder(OptimizerConfig(lr=1e-2, name="muon"), is_half=half) for half in (False, True))
    name = "layer.0.feed_forward.up.weight"
    assert 0 < (exact[name] - rounded[name]).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["muon", "lamb", "stable_adamw"])
def test_a_step_that_is_not_finite_changes_nothing(name: OptimizerName) -> None:
    config = OptimizerConfig(lr=1e-2, name=name)
    none_refused, refused = _train_encoder(config, steps=2), _train_encoder(config, refused=2)
    assert all(torch.equal(weight, refused[parameter]) for parameter, weight in none_refused.items())


def test_lamb_scales_each_tensor_by_its_trust_ratio() -> None:
    """You et al. 2020, Algorithm 2, without bias correction: the first step of one tensor."""
    config = OptimizerConfig(lr=1e-2, name="lamb", weight_decay=0.1, beta2=0.98)
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    model = nn.ParameterDict({"weight": weight})
    optimizer = build_optimizer(model, config, offloaded=False)
    assert isinstance(optimizer, LibraryOptimizer)
    optimizer.place({("", "lamb", True): [HeldTensor(weight, 0, 0, 2, (1, 2), (1, 2), 0, 0, None, None)]})
    before, weight.grad = weight.detach().double(), torch.tensor([[0.5, -0.2]])
    gradient = weight.grad.double()
    update = 0.1 * gradient / ((0.02 * gradient**2).sqrt() + config.eps) + 0.1 * before
    optimizer.step()
    expected = before - 1e-2 * (5.0 / update.norm()) * update
    assert torch.allclose(weight.double(), expected, atol=1e-7)
