"""Parameters, gradients and optimizer states of a plan are the tensors of real DeepSpeed engines."""

import gc
import math
import time

import pytest
import torch

from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.engine.process_group import start_process_group
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.plan.zero import zero_memory
from tests.ranks import run_ranks
from tests.unit.plan.tiny_engine import MICRO_BATCH, MODEL, RANKS, tiny_engine, zero_block


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


def _settled_bytes() -> int:
    """Once gloo's threads have let go of the last bucket, which is a moment after its collective."""
    counts = []
    for _ in range(4):
        counts.append(_live_bytes())
        time.sleep(0.05)
    return min(counts)


def _fullest_moments(rank: int, world_size: int, precision: str) -> list[int]:
    """Bytes of tensors after a backward pass, when the optimizer has its states, for each ZeRO stage."""
    start_process_group(60.0)
    found = []
    for stage in range(4):
        gc.collect()
        gc.freeze()
        engine = tiny_engine(precision, stage)
        fullest = 0
        for _ in range(4):  # two updates of two micro batches
            engine.backward(engine(**MICRO_BATCH)[0]["mlm_loss"][0])
            fullest = max(fullest, _settled_bytes())
            engine.step()
        found.append(fullest)
        engine.destroy()
        del engine
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_of_every_zero_stage_are_those_of_the_engine(precision: str) -> None:
    sizes = [math.prod(shape) for shape in parameter_shapes(MODEL, ObjectiveConfig()).values()]
    measured = run_ranks(_fullest_moments, RANKS, precision, timeout=200.0)[0]
    for stage, found in enumerate(measured):
        memory = zero_memory(
            sum(sizes),
            settings=EngineSettings.of(zero_block(precision, stage)),
            num_moments=2,
            stage=stage,
            data_parallel=RANKS,
            largest_parameter=max(sizes),
        )
        planned = memory.parameters + memory.gradients + memory.optimizer + memory.bucket
        assert planned == pytest.approx(found, rel=0.05), f"stage {stage}"
