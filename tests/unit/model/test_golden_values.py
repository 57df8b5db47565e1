"""Outputs of the model on weights filled by rule, against values computed with transformers and microsoft/DeBERTa."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.models import rtd_logits
from tests.unit.model.golden import (
    IDS,
    MASK,
    golden_backbone,
    golden_config,
    golden_discriminator,
    golden_mlm,
    golden_v1,
)

# The values are printed with six decimals, sums over up to 80 of them: 5e-6 is the rounding of the source.
TOLERANCE = {"abs": 5e-6, "rel": 0}


def _check(values: Tensor, total: float, absolute: float, first: list[float], last: list[float]) -> None:
    flat = values.flatten()
    assert flat.sum().item() == pytest.approx(total, **TOLERANCE)
    assert flat.abs().sum().item() == pytest.approx(absolute, **TOLERANCE)
    assert flat[:4].tolist() == pytest.approx(first, **TOLERANCE)
    assert flat[-4:].tolist() == pytest.approx(last, **TOLERANCE)


BACKBONES = {
    "G1 v2": (
        {},
        38,
        (-4.706546, 69.053298),
        [-0.99824, -0.211571, 1.262589, 1.18008],
        [0.16164, -1.248833, -0.757528, 0.722812],
    ),
    "G2 separate position projections": (
        {"share_att_key": False},
        46,
        (-0.795863, 66.610169),
        [0.083989, -1.728075, -1.231548, 0.525898],
        [1.092216, -0.416196, -1.703577, -0.33253],
    ),
    "G3 convolution": (
        {"conv_kernel_size": 3},
        42,
        (4.201051, 72.949619),
        [0.928989, -0.792878, -0.336309, 1.716536],
        [-0.274323, -1.490269, -0.762481, 1.093458],
    ),
    "G4 linear distances": (
        {"position_buckets": -1, "norm_rel_ebd": "none"},
        36,
        (4.473401, 70.278248),
        [0.705575, -0.584905, 0.382223, 1.61653],
        [1.023431, -1.031997, -1.703094, 0.077549],
    ),
    "G5 token types and input positions": (
        {"type_vocab_size": 2, "position_biased_input": True},
        40,
        (-1.197316, 69.792480),
        [1.472245, -0.287179, -1.285687, -0.033668],
        [1.132795, -0.720328, -0.854117, 1.181573],
    ),
}


@pytest.mark.parametrize("case", BACKBONES.values(), ids=BACKBONES.keys())
def test_backbone_gives_the_golden_values(case: tuple) -> None:
    changes, num_keys, (total, absolute), first, last = case
    model, keys = golden_backbone(golden_config(**changes))
    assert keys == num_keys
    _check(model.encode(IDS, MASK)[MASK.bool()], total, absolute, first, last)


def test_v1_weights_give_the_golden_values_with_and_without_key_biases() -> None:
    v1, v2_with_zero_biases, keys = golden_v1()
    assert keys == 36
    for model in (v1, v2_with_zero_biases):
        _check(
            model.encode(IDS, MASK)[MASK.bool()],
            4.295547,
            69.151550,
            [1.193046, -0.598026, -0.137099, 1.440601],
            [1.384681, -0.312139, -1.654285, -0.604629],
        )


def test_mlm_head_without_mask_decoder_gives_the_golden_logits() -> None:
    model, keys = golden_mlm(golden_config())
    assert keys == 43
    _check(
        model.mlm_logits(IDS, MASK)[MASK.bool()],
        -15.530265,
        110.942479,
        [0.087572, -0.893018, -1.473663, -1.389414],
        [1.391312, 0.688757, -0.327681, -1.197829],
    )


def test_enhanced_mask_decoder_gives_the_golden_logits_and_losses() -> None:
    model, keys = golden_mlm(golden_config(enhanced_mask_decoder=True))
    assert keys == 44
    positions, labels = torch.tensor([[3], [2]]), torch.tensor([[8], [10]])
    logits = model.mlm_logits(IDS, MASK, positions)
    _check(
        logits,
        -7.422922,
        25.827100,
        [-1.044525, -1.549616, -1.35426, -0.544586],
        [-0.711464, -1.440821, -1.522312, -0.915542],
    )
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert losses.tolist() == pytest.approx([2.706439, 4.323240], **TOLERANCE)
    terms, _ = model(IDS, MASK, positions, labels)
    loss_sum, targets = terms["mlm_loss"]
    assert loss_sum.item() == pytest.approx(2.706439 + 4.323240, **TOLERANCE)
    assert targets.item() == 2


def test_discriminator_gives_the_golden_logits_targets_and_loss() -> None:
    model, keys = golden_discriminator(golden_config())
    assert keys == 45
    sampled = torch.tensor([[1, 5, 7, 8, 9, 2], [1, 6, 3, 2, 0, 0]])
    # The source ran in float32; its values are printed with six decimals.
    _check(
        rtd_logits(model, sampled, MASK)[MASK.bool()],
        2.554543,
        4.245538,
        [-0.055439, -0.206711, -0.236938, -0.235387],
        [0.628845, 0.578132, 0.621042, 0.637778],
    )
    labels = torch.zeros_like(sampled)
    labels[0, 3], labels[1, 2] = 8, 10
    replaced = (labels > 0) & (labels != sampled)
    assert replaced[MASK.bool()].long().tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    terms, _ = model(sampled, MASK, part="discriminator", replaced=replaced)
    loss_sum, tokens = terms["rtd_loss"]
    assert tokens.item() == 10  # [CLS] and [SEP] count, padding does not
    assert (loss_sum / tokens).item() == pytest.approx(0.790153, **TOLERANCE)
