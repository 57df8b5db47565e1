"""Loss and gradients of a whole model against our reference in fp32, on a padded batch.

Losses are compared in fp32: in bf16 the numbers near ln(vocabulary) are 0.06 apart.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peers import EAGER
from step_models import Batch, build_ours, build_theirs, copy_weights, draw_batch, our_loss, their_loss
from torch import Tensor, nn

from gpu.finding import Finding, WrongResultError
from gpu.scale import Scale
from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.names import mlm_names
from megadeberta.ops.attention.backends import REFERENCE

Outcome = tuple[float, dict[str, Tensor]]
"""Loss, and the gradient of every parameter."""
LAYERS, BATCH = 4, 2
LOSS_TOLERANCE, FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 1e-4, 6e-2
"""Relative: of the fp32 loss, and of the gradient of a parameter through all layers."""
DROPOUT = 0.1
"""Ours alone: transformers draws other numbers."""


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Differences of one backend, in fp32 and in the type of the scale, or of transformers' model in fp32."""
    scale, variant = Scale.of(parameters), parameters["variant"]
    device, dtype = torch.device(scale.device), getattr(torch, scale.dtype)
    dropout = 0.0 if variant == EAGER else DROPOUT
    config = ModelConfig(
        **{
            **scale.model,
            "num_hidden_layers": LAYERS,
            "enhanced_mask_decoder": False,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
    )
    torch.manual_seed(0)
    batch = pad(draw_batch(BATCH, scale.points["512"][1], config.vocab_size, device=device))
    truth = build_ours(config, backend=REFERENCE, device=device)
    found = evaluate_theirs(truth, config, batch) if variant == EAGER else evaluate_ours(config, variant, batch)
    expected = evaluate(truth.to(device), batch)
    values = {"loss": expected[0], "loss_error": abs(found[0] - expected[0]) / abs(expected[0])}
    values["gradient_error"] = largest_difference(found[1], expected[1])
    if not (values["loss_error"] <= LOSS_TOLERANCE and values["gradient_error"] <= FP32_TOLERANCE):
        raise WrongResultError(
            f"in fp32: loss {values['loss_error']:.1e}, gradients {values['gradient_error']:.1e} off"
        )
    if variant != EAGER and dtype != torch.float32:
        _, gradients = evaluate_ours(config, variant, batch, dtype=dtype)
        values["bf16_gradient_error"] = largest_difference(gradients, expected[1])
        if not values["bf16_gradient_error"] <= BF16_TOLERANCE:
            raise WrongResultError(f"in bf16, relative: {values}")
    yield Finding(values)


def evaluate_ours(config: ModelConfig, backend: str, batch: Batch, *, dtype: torch.dtype = torch.float32) -> Outcome:
    device = batch.ids.device
    return evaluate(build_ours(config, backend=backend, device=device).to(device, dtype), batch)


def evaluate_theirs(ours: nn.Module, config: ModelConfig, batch: Batch) -> Outcome:
    """Of transformers' model, whose weights ``ours`` gets, under our names."""
    theirs = build_theirs(config)
    copy_weights(theirs, ours, config)
    theirs.to(batch.ids.device).train()
    loss = their_loss(theirs, batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = mlm_names(config)
    return float(loss), {ours: gradients[name] for ours, name in names.items() if gradients.get(name) is not None}


def evaluate(model: nn.Module, batch: Batch) -> Outcome:
    """Loss, and the gradient of every parameter that has one."""
    loss = our_loss(model.train(), batch)
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative L2 distance of the parameter that is furthest off."""
    return max(
        float((found[name].float() - right).norm() / right.norm()) for name, right in expected.items() if name in found
    )


def pad(batch: Batch) -> Batch:
    """The batch with an eighth of the tokens of every other sample as padding; targets there become empty slots."""
    length = batch.ids.size(1)
    real = torch.ones_like(batch.ids)
    real[1::2, length - length // 8 :] = 0
    used = real.gather(1, batch.positions)
    return replace(
        batch,
        ids=batch.ids * real,
        mask=real,
        has_padding=True,
        positions=batch.positions * used,
        targets=batch.targets * used,
        labels=batch.labels.masked_fill(real == 0, -100),
    )
