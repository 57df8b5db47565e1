"""Adam without bias correction, and which parameters are decayed."""

import pytest
import torch
from torch import nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.optimizer import (
    AdamWithoutBiasCorrection,
    build_optimizer,
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
    kept = state_format(optimizer)
    assert len(kept.moments) == config.num_moments  # what the plan counts
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
        state_format(torch.optim.SGD(nn.Linear(1, 1).parameters()))


def test_biases_and_layer_norms_are_not_decayed_and_all_tables_are() -> None:
    model = WholeModel(token_model_layers(golden_config(enhanced_mask_decoder=True, conv_kernel_size=3)))
    decayed, plain = parameter_groups(model.named_parameters(), weight_decay=0.01)
    decayed_ids = {id(p) for p in decayed["params"]}
    for name, parameter in model.named_parameters():
        is_norm_or_bias = name.endswith("bias") or "layer_norm" in name
        assert (id(parameter) not in decayed_ids) == is_norm_or_bias, name
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0.0
    for table in ("embeddings.word_embeddings", "relative.embedding", "mask_decoder.position_embeddings"):
        assert id(model.get_parameter(f"{table}.weight")) in decayed_ids
