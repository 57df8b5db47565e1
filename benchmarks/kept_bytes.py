"""Bytes that a real model keeps for its backward pass: what torch's allocator still holds when the forward is done."""

import gc
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.attention_backend import select_attention, select_recompute, select_residual_norm
from megadeberta.model.compiled_layers import select_compile
from megadeberta.model.whole import WholeModel
from megadeberta.ops.recycled_buffer import RecycledBuffer

BATCH, LENGTH = 4, 96


def kept_bytes(
    model: ModelConfig,
    objective: ObjectiveConfig,
    backend: str,
    *,
    targets: int,
    batch: int = BATCH,
    length: int = LENGTH,
    recompute: bool = False,
    selective: bool = False,
    compiled: bool = False,
    shard: Callable[[WholeModel], None] = lambda _: None,
) -> int:
    """Of one training pass in fp32 with all targets filled.

    Autograd's hooks would not do: activations that are recomputed are held by functions, not by autograd.
    """
    torch.manual_seed(0)
    whole = WholeModel(list_layers(model, objective), recompute=recompute)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.02)
    shard(whole)
    select_attention(whole, backend, torch.device("cpu"))
    select_residual_norm(whole, "auto", torch.device("cpu"), attention=backend)
    select_recompute(whole, selective)
    if compiled:
        select_compile(whole, "layers", torch.device("cpu"))
    whole.train()
    inputs = _inputs(model, batch, length, targets)
    # A buffer that is taken again is not allocated again.
    with patch.object(RecycledBuffer, "take", lambda *_, **__: None):  # a mock would hold what it was called with
        whole(**inputs)  # what is made once and for all
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            terms, _ = whole(**inputs)
            loss = sum(total for name, (total, _) in terms.items() if name.endswith("_loss"))
    assert loss.requires_grad  # it holds the graph
    events = profiler.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def _inputs(model: ModelConfig, batch: int, length: int, targets: int) -> dict[str, Tensor]:
    positions = torch.stack([torch.randperm(length)[:targets].sort().values for _ in range(batch)])
    return {
        "input_ids": torch.randint(5, model.vocab_size, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.int64),
        "masked_positions": positions,
        "masked_labels": torch.randint(5, model.vocab_size, (batch, targets)),
        "sample_numbers": torch.arange(batch),
    }
