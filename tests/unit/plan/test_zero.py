"""Parameters, gradients and optimizer states of a plan are the tensors of real DeepSpeed engines."""

import gc
import time
from typing import Any, Self

import pytest
import torch

from megadeberta.config.deepspeed_block import Precision
from megadeberta.engine.process_group import start_process_group
from megadeberta.plan.zero import zero_memory
from tests.ranks import run_ranks
from tests.unit.plan.tiny_engine import BUCKET, COUNT, LARGEST, MICRO_BATCH, RANKS, tiny_engine, zero_recipe


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


def _measure(rank: int, world_size: int, precision: Precision, sums: Precision, overlap: bool) -> list[tuple[int, int]]:
    """For each ZeRO stage, bytes of tensors after a backward pass, when the optimizer has its states, and bytes of the
    buckets that building the engine and the first backward pass allocate."""
    start_process_group(60.0)
    found = []
    for stage in range(4):
        gc.collect()
        gc.freeze()
        with _BucketBytes() as buckets:
            engine = tiny_engine(zero_recipe(precision, stage, sums, overlap_comm=overlap))
            engine.backward(engine(**MICRO_BATCH)[0]["mlm_loss"][0])
        fullest = _settled_bytes()
        engine.step()
        for _ in range(3):  # two updates of two micro batches in all
            engine.backward(engine(**MICRO_BATCH)[0]["mlm_loss"][0])
            fullest = max(fullest, _settled_bytes())
            engine.step()
        found.append((fullest, buckets.total))
        engine.destroy()
        del engine
    return found


class _BucketBytes:
    """Of flat tensors with exactly the elements of a bucket, from ``torch.empty``."""

    def __enter__(self) -> Self:
        self.total, self._empty = 0, torch.empty
        torch.empty = self._counted
        return self

    def __exit__(self, *_: object) -> None:
        torch.empty = self._empty

    def _counted(self, *size: Any, **options: Any) -> torch.Tensor:
        made = self._empty(*size, **options)
        if made.shape == (BUCKET,):
            self.total += made.nbytes
        return made


@pytest.mark.parametrize(
    ("precision", "sums", "overlap"),
    [("fp32", "fp32", True), ("bf16", "bf16", True), ("bf16", "fp32", True), ("bf16", "fp32", False)],
)
def test_states_of_every_zero_stage_are_those_of_the_engine(
    precision: Precision, sums: Precision, overlap: bool
) -> None:
    measured = run_ranks(_measure, RANKS, precision, sums, overlap, timeout=200.0)[0]
    for stage, (found, buckets) in enumerate(measured):
        memory = zero_memory(
            COUNT,
            settings=zero_recipe(precision, stage, sums, overlap_comm=overlap).engine,
            num_moments=2,
            data_parallel=RANKS,
            largest_parameter=LARGEST,
        )
        assert memory.bucket == buckets, f"stage {stage}"
        planned = memory.parameters + memory.gradients + memory.optimizer + memory.bucket
        assert planned == pytest.approx(found, rel=0.05), f"stage {stage}"
