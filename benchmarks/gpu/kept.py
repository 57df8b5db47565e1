"""Bytes that one layer keeps for the backward pass, per token."""

from collections.abc import Iterator
from typing import Any

import torch
from step_models import build_ours, draw_batch, our_loss
from stopwatch import KeptTensors

from gpu.finding import Finding
from gpu.scale import TOY_MODEL, Scale
from megadeberta.config.model import ModelConfig
from megadeberta.model.attention_backend import select_recompute

BATCH, LENGTH, TOY_LENGTH = 2, 512, 24


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Base, in the type of the scale, with dropout."""
    scale = Scale.of(parameters)
    yield Finding(
        kept(
            TOY_MODEL if parameters["toy"] else {},
            backend=parameters["variant"],
            selective=parameters["selective"],
            dropout=0.1,
            dtype=getattr(torch, scale.dtype),
            device=torch.device(scale.device),
        )
    )


def on_cpu(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Base, in fp32 on a CPU, without dropout, by the backend that keeps least."""
    sizes = TOY_MODEL if parameters["toy"] else {}
    cpu = torch.device("cpu")
    yield Finding(kept(sizes, backend="cpu-lean", selective=False, dropout=0.0, dtype=torch.float32, device=cpu))


def kept(
    sizes: dict[str, int], *, backend: str, selective: bool, dropout: float, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """The difference of two depths, so that embeddings, table and head do not count."""
    small = {"vocab_size": 200, "enhanced_mask_decoder": False}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    length = TOY_LENGTH if sizes else LENGTH
    found = []
    for layers in (1, 2):
        config = ModelConfig(**{**sizes, **small, **drops, "num_hidden_layers": layers})
        model = build_ours(config, backend=backend, device=device).to(device, dtype).train()
        select_recompute(model, selective)
        batch = draw_batch(BATCH, length, config.vocab_size, device=device)
        our_loss(model, batch)  # what is made once and for all
        with KeptTensors() as tensors:
            loss = our_loss(model, batch)
            found.append(tensors.bytes() - loss.nbytes)
    return {"kib_per_token_per_layer": (found[1] - found[0]) / (BATCH * length * 1024)}
