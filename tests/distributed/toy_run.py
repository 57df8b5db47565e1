"""A toy pre-training run through the real engine, for tests that compare layouts."""

import math

import torch
from torch import distributed

from megadeberta.batch import Batch
from megadeberta.config.deepspeed_block import EngineSettings, batch_algebra
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.step import Stepper
from megadeberta.engine.whole_step import WholeStepper
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.topology import Topology

GLOBAL_BATCH = 8
LENGTH = 24
OPTIMIZER = OptimizerConfig(lr=3e-3, weight_decay=0.01)
CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    position_buckets=8,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)


def toy_block(*, zero_stage: int, micro_batch: int, **changes: object) -> dict[str, object]:
    block = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero_stage},
    }
    return block | changes


def toy_engine(
    block: dict[str, object],
    *,
    seed: int = 5,
    dropout: float = 0.0,
    objective: ObjectiveConfig = ObjectiveConfig(),
    lr: tuple[float, float | None] = (3e-3, None),
) -> tuple[Stepper, WholeModel]:
    """The process group, the model initialised by name, the engine and its stepper."""
    device = start_process_group(60.0)
    config = CONFIG.model_copy(update={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout})
    model = WholeModel(list_layers(config, objective))
    initialize(model, seed=seed, std=CONFIG.initializer_range)
    set_sites(model.named_modules(), seed=seed)
    optimizer = OPTIMIZER.model_copy(update={"lr": lr[0], "discriminator_lr": lr[1]})
    engine = build_engine(model, optimizer, block=block, timeout_seconds=60.0)
    settings = EngineSettings.of(block)
    return WholeStepper(
        engine,
        updates=objective_of(objective).updates(objective),
        batch_fields=list(global_batch(0)),
        settings=settings,
        topology=Topology(data=distributed.get_world_size()),
        device=device,
    ), model


def global_batch(step: int) -> Batch:
    """``GLOBAL_BATCH`` sequences with different numbers of targets and different lengths."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(4, 60, (GLOBAL_BATCH, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (GLOBAL_BATCH, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    ids = ids * mask
    positions = torch.stack([torch.randperm(LENGTH // 2, generator=generator)[:6] for _ in range(GLOBAL_BATCH)])
    labels = ids.gather(1, positions)
    used = torch.arange(6) < torch.randint(1, 7, (GLOBAL_BATCH, 1), generator=generator)
    labels, positions = labels * used, positions * used
    ids = ids.scatter(1, positions, torch.where(used, 63, ids[:, :1]))
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "masked_positions": positions,
        "masked_labels": labels,
        "sample_numbers": torch.arange(GLOBAL_BATCH) + (step << 32),
    }


def share_of(batch: Batch, *, rank: int, world_size: int, micro_batch: int) -> list[Batch]:
    """This rank's micro batches, dealt out as the loader does."""
    accumulation = GLOBAL_BATCH // (world_size * micro_batch)
    starts = [(a * world_size + rank) * micro_batch for a in range(accumulation)]
    return [{name: tensor[s : s + micro_batch] for name, tensor in batch.items()} for s in starts]


def run_toy(
    rank: int, world_size: int, block: dict[str, object], steps: int, objective: dict[str, object] | None = None
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, and a last pair (validation loss, accuracy)."""
    micro_batch = int(block["train_micro_batch_size_per_gpu"])
    batch_algebra(block, data_parallel=world_size, source="toy")
    stepper, _ = toy_engine(block, objective=ObjectiveConfig.model_validate(objective or {}))
    trace = []
    for step in range(steps):
        share = share_of(global_batch(step), rank=rank, world_size=world_size, micro_batch=micro_batch)
        targets, stop = stepper.share_counts(share, stop_requested=False)
        assert not stop
        result = stepper.train_step(share, step=step, targets=targets, lr=3e-3)
        trace.append((result.loss, result.grad_norm))
    held_out = global_batch(10_000)
    mine = [share_of(held_out, rank=0, world_size=1, micro_batch=GLOBAL_BATCH)[0]] if rank == 0 else []
    validation = stepper.evaluate(mine)
    assert math.isfinite(validation.loss)
    return [*trace, (validation.loss, validation.terms.means["mlm_accuracy"])]
