"""One attention layer with its projections and LayerNorm, as the models have it, forward and backward."""

from collections.abc import Iterator
from typing import Any

import torch
from attention_layer import draw_inputs, our_layer, their_layer, with_backward
from peers import BERT, EAGER, PACKAGES
from step_models import PACKAGE_USES, bert_of, build_bert, build_ours, build_theirs
from stopwatch import device_seconds, peak_memory
from torch import nn

from gpu.finding import Finding
from gpu.plan import fastest_backend
from gpu.scale import Scale
from megadeberta.config.model import ModelConfig


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Times, useful TFLOP/s and peak memory of one variant."""
    torch.manual_seed(0)
    scale, variant = Scale.of(parameters), parameters["variant"]
    device, shape = torch.device(scale.device), scale.points[parameters["point"]]
    span = scale.span(shape[1])
    rate = parameters["dropout"]
    config = ModelConfig(
        **scale.layer_model,
        max_position_embeddings=span,
        max_relative_positions=span,
        enhanced_mask_decoder=False,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
    )
    config = bert_of(config) if variant == BERT else config
    model = build(config, variant, device).to(device, getattr(torch, scale.dtype)).train()
    inputs = draw_inputs(config, shape, next(model.parameters()))
    theirs = variant == EAGER or variant in PACKAGES
    forward = their_layer(model, inputs) if theirs else our_layer(model, inputs)
    with torch.no_grad():
        seconds = device_seconds(forward, device, scale.repeats, flush=True)
    both = with_backward(forward, model, inputs)
    with peak_memory(device) as peak:
        total = device_seconds(both, device, scale.repeats, flush=True)
        extra = peak()
    values = {"batch": shape[0], "length": shape[1], "forward_ms": 1e3 * seconds, "both_ms": 1e3 * total}
    yield Finding(values | {"tflops": inputs.useful_flops() / total / 1e12, "peak_gib": extra})


def build(config: ModelConfig, variant: str, device: torch.device) -> nn.Module:
    """A small model whose first layer is timed."""
    if variant == BERT:
        return build_bert(config, backend=fastest_backend(device.type), device=device)
    if variant == EAGER:
        return build_theirs(config)
    if variant in PACKAGES:
        model = build_theirs(config).to(device)
        PACKAGE_USES[variant](model)
        return model
    return build_ours(config, backend=variant, device=device)
