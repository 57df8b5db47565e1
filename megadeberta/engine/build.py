"""A model becomes a DeepSpeed engine."""

from collections.abc import Mapping
from typing import Any

import deepspeed
from deepspeed.runtime.config import DeepSpeedConfigError
from pydantic import ValidationError
from torch import nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.engine.process_group import apply_timeout
from megadeberta.errors import ConfigError


def build_engine(
    model: nn.Module, optimizer: OptimizerConfig, *, block: Mapping[str, Any], timeout_seconds: float
) -> deepspeed.DeepSpeedEngine:
    """Wrap ``model``; the recipe's deepspeed block goes in as it stands.

    All-reduces over the world once, while DeepSpeed sets up its groups.

    Raises:
        ConfigError: DeepSpeed refuses the block; the same on every rank.
    """
    try:
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, optimizer, deepspeed_block=block),
            config=dict(block),
            dist_init_required=False,
        )
    except (ValidationError, DeepSpeedConfigError) as error:
        raise ConfigError(f"DeepSpeed {deepspeed.__version__} refuses the deepspeed block: {_reason(error)}") from error
    apply_timeout(timeout_seconds)
    return engine


def _reason(error: ValidationError | DeepSpeedConfigError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{error.title}.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)
