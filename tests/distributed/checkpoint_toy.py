"""A small DeepSpeed run that saves through the store: what the checkpoint tests run on their ranks."""

import logging
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from megadeberta.checkpoint import CheckpointStore, RunRecord, WorldLayout
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.state.local_parameters import whole_parameters
from megadeberta.engine.state.optimizer_state import OptimizerState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quiet() -> None:
    """Only what the tests are about, and errors, in the output of a rank."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def collectives() -> TorchCollectives:
    """Over all ranks, on the CPU."""
    return TorchCollectives(torch.device("cpu"))


def build_engine(
    zero_stage: int = 1,
    precision: str = "fp32",
    seed: int = 0,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> DeepSpeedEngine:
    """Two linear layers and dropout; more parameters than fit evenly on two ranks."""
    quiet()
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4)
    )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    if precision == "fp16":
        config["fp16"]["initial_scale_power"] = 8
    return deepspeed.initialize(model=model, optimizer=optimizer(model.parameters(), lr=1e-2), config=config)[0]


def state_of(engine: DeepSpeedEngine) -> OptimizerState:
    """What checkpoints read and write."""
    return OptimizerState(engine, whole_parameters(engine.module.named_parameters()))


def train(engine: DeepSpeedEngine, steps: int) -> list[str]:
    """Losses as hexadecimal floats: equal text means equal bits. Data and dropout follow from step and rank."""
    dtype = next(engine.module.parameters()).dtype
    losses = []
    for _ in range(steps):
        torch.manual_seed(1000 * engine.global_steps + engine.global_rank)
        loss = engine(torch.randn(2, 8).to(dtype)).float().pow(2).mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item().hex())
    return losses


def run_record(world_size: int, zero_stage: int = 1, precision: str = "fp32", model: str = "toy") -> RunRecord:
    """The description of the run above."""
    layout = WorldLayout(world_size=world_size, data_parallel=world_size, zero_stage=zero_stage, precision=precision)
    return RunRecord(
        world=layout,
        versions={"torch": torch.__version__, "deepspeed": deepspeed.__version__},
        fingerprint={"model": model, "data": "random numbers"},
        config={"optimizer": {"lr": 1e-2}},
    )


def open_store(root: str | Path, keep_last: int = 2) -> CheckpointStore:
    """The store of all ranks."""
    return CheckpointStore(Path(root), collectives=collectives(), keep_last=keep_last)
