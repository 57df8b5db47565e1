"""How a model becomes an engine, as far as it can be seen without one."""

from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine import build
from megadeberta.engine.build import build_engine, working_type
from megadeberta.errors import ConfigError


@pytest.mark.parametrize(("given", "handed_on"), [({}, 1_000_000_000), ({"steps_per_print": 7}, 7)])
def test_deepspeed_prints_no_progress_unless_the_recipe_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], handed_on: int
) -> None:
    seen: list[dict[str, Any]] = []

    def initialize(**arguments: Any) -> tuple[SimpleNamespace]:
        seen.append(arguments["config"])
        return (SimpleNamespace(optimizer=None),)

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    block = {"train_batch_size": 1, **given}
    build_engine(nn.Linear(2, 2), OptimizerConfig(lr=1e-3), block=block, timeout_seconds=60.0)
    assert seen == [{"train_batch_size": 1, "steps_per_print": handed_on}]
    assert block == {"train_batch_size": 1, **given}


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(
        device_name=lambda: "abacus", is_bf16_supported=lambda: True, is_fp16_supported=lambda: False
    )
    monkeypatch.setattr(build, "get_accelerator", lambda: device)
    block = {"train_batch_size": 1, "fp16": {"enabled": True}}
    with pytest.raises(ConfigError, match=r"fp16.enabled=true: this device \(abacus\) has no fp16; use fp32 or bf16"):
        build_engine(nn.Linear(2, 2), OptimizerConfig(lr=1e-3), block=block, timeout_seconds=60.0)


def test_working_type_is_that_of_the_precision() -> None:
    assert [working_type(name) for name in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
