"""A model becomes a DeepSpeed engine."""

from collections.abc import Mapping
from typing import Any

import deepspeed
from torch import nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.engine.process_group import apply_timeout


def build_engine(
    model: nn.Module, optimizer: OptimizerConfig, *, block: Mapping[str, Any], timeout_seconds: float
) -> deepspeed.DeepSpeedEngine:
    """Wrap ``model``; the recipe's deepspeed block goes in as it stands.

    All-reduces over the world once, while DeepSpeed sets up its groups.
    """
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, optimizer, deepspeed_block=block),
        config=dict(block),
        dist_init_required=False,
    )
    apply_timeout(timeout_seconds)
    return engine
