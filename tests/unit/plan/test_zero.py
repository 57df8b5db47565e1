"""Parameters, gradients and optimizer states of a plan are the tensors of real DeepSpeed engines."""

import gc
import math

import pytest
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.parameters import parameter_shapes
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.engine.process_group import start_process_group
from megadeberta.model.whole import WholeModel, build_specs
from megadeberta.plan.zero import zero_memory
from tests.ranks import run_ranks

RANKS = 2
BUCKET = 60_000
MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    position_buckets=8,
    max_position_embeddings=32,
)


def _block(precision: str, stage: int) -> dict[str, object]:
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    block: dict[str, object] = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "steps_per_print": 1_000_000,
    }
    return block if precision == "fp32" else block | {precision: {"enabled": True}}


def _live_bytes() -> int:
    """Of all tensors made since ``gc.freeze()``, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if not isinstance(thing, torch.Tensor):
            continue
        for tensor in (thing, thing.grad if thing.is_leaf else None):
            if tensor is not None and tensor.untyped_storage().data_ptr():
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _fullest_moments(rank: int, world_size: int, precision: str) -> list[int]:
    """Bytes of tensors after a backward pass, when the optimizer has its states, for each ZeRO stage."""
    start_process_group(60.0)
    found = []
    for stage in range(4):
        gc.collect()
        gc.freeze()
        whole = WholeModel(build_specs(MODEL, ObjectiveConfig()))
        block = _block(precision, stage)
        engine = build_engine(whole, OptimizerConfig(lr=1e-3), block=block, timeout_seconds=60.0)
        fullest = 0
        for _ in range(4):  # two updates of two micro batches
            engine.backward(engine(**_batch())[0]["mlm_loss"][0])
            fullest = max(fullest, _live_bytes())
            engine.step()
        found.append(fullest)
        engine.destroy()
        del engine, whole
    return found


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 500, (1, 16))
    positions = torch.arange(3).unsqueeze(0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "masked_positions": positions,
        "masked_labels": ids[:, :3],
        "sample_numbers": torch.zeros(1, dtype=torch.int64),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_of_every_zero_stage_are_those_of_the_engine(precision: str) -> None:
    shapes = parameter_shapes(MODEL, ObjectiveConfig())
    sizes = [math.prod(shape) for shape in shapes.values()]
    measured = run_ranks(_fullest_moments, RANKS, precision)[0]
    for stage, found in enumerate(measured):
        memory = zero_memory(
            sum(sizes),
            block=_block(precision, stage),
            stage=stage,
            data_parallel=RANKS,
            largest_parameter=max(sizes),
        )
        planned = memory.parameters + memory.gradients + memory.optimizer + memory.bucket
        assert planned == pytest.approx(found, rel=0.05), f"stage {stage}"
