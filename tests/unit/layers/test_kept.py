"""The activations of a plan are the bytes that a model really keeps."""

import functools
import math

import pytest
from kept_bytes import BATCH, LENGTH, kept_bytes
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megadeberta.config.run import RunConfig
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import Update
from megadeberta.ops.attention.backends import BACKENDS
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from megadeberta.plan.memory import ForwardMemory, forward_memory
from megadeberta.plan.stages import Recipe
from tests.models import V1, V2, run_config
from tests.ranks import run_ranks
from tests.unit.plan.small import layout

MODEL = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "max_position_embeddings": LENGTH,
    "position_buckets": 32,
}
SHAPES = {
    "v3": {},
    "v1": V1,
    "v2": V2,
    "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "input positions": {"position_biased_input": True, "enhanced_mask_decoder": False},
    "absolute": {"relative_attention": False},
    "c2p alone": {"pos_att_type": ("c2p",)},
}


KERNELS = ("triton", "gluon")
"""One operator for both. Through the interpreter it takes minutes, and the second kind has none."""
CASES = [(shape, "mlm", backend, False) for shape in SHAPES for backend in ("cpu", "reference")]
CASES += [("v3", "mlm", name, False) for name in BACKENDS if name not in ("cpu", "reference", *KERNELS)]
CASES += [("v3", "rtd", "cpu", False), ("v1", "rtd", "reference", False)]
CASES += [("v3", "mlm", "cpu", True), ("v2", "rtd", "reference", True)]


def _forward(config: RunConfig, batch: MicroBatch) -> ForwardMemory:
    (stage,) = Recipe(config).stages(layout(micro_batch=batch.sequences, tensor=batch.tensor))
    return forward_memory(stage, batch, updates=(Update(None, {}),))


@pytest.mark.parametrize(("shape", "objective", "backend", "recompute"), CASES)
def test_kept_bytes_are_those_of_the_plan(shape: str, objective: str, backend: str, recompute: bool) -> None:
    config = run_config(model=MODEL | SHAPES[shape], objective={"name": objective}, data={"sequence_length": LENGTH})
    targets = math.ceil(config.objective.mask_rate * LENGTH)
    batch = MicroBatch(BATCH, LENGTH, targets, attention=backend, activation_checkpointing=recompute)
    forward = _forward(config, batch)
    found = kept_bytes(config.model, config.objective, backend, targets=targets, recompute=recompute)
    # Masks and counts are left out of the plan.
    assert forward.kept + forward.kept_logits == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in KERNELS])
def test_selective_recompute_keeps_what_the_plan_says(backend: str) -> None:
    config = run_config(model=MODEL, training={"selective_recompute": True}, data={"sequence_length": LENGTH})
    batch = layout(micro_batch=BATCH).micro_batch_of(config, attention=backend)
    assert batch.selective_recompute
    forward = _forward(config, batch)
    found = kept_bytes(config.model, config.objective, backend, targets=batch.slots, selective=True)
    assert forward.kept + forward.kept_logits == pytest.approx(found, rel=0.02)


def test_kept_bytes_of_the_kernels_are_those_of_the_plan() -> None:
    """Of one sequence, one head and two layers: the cases above take minutes through Triton's interpreter."""
    config = run_config(
        model=MODEL | {"num_attention_heads": 1, "num_hidden_layers": 2}, data={"sequence_length": LENGTH}
    )
    batch = layout(micro_batch=1).micro_batch_of(config, attention="triton")
    forward = _forward(config, batch)
    found = kept_bytes(config.model, config.objective, "triton", targets=batch.slots, batch=1)
    assert forward.kept + forward.kept_logits == pytest.approx(found, rel=0.02)


def _kept_by_shards(
    rank: int, world_size: int, config: RunConfig, targets: int, *, sequence_parallel: bool
) -> list[int]:
    """Of each of two ranks. Their collectives do nothing: a real group frees memory behind the profiler's back."""
    found = []
    for each in range(2):
        distributed.init_process_group("fake", store=FakeStore(), rank=each, world_size=2)
        plan = TensorParallel(distributed.group.WORLD, config.model.vocab_size, sequence_parallel)
        shard = functools.partial(apply_tensor_parallel, plan=plan)
        found.append(kept_bytes(config.model, config.objective, "cpu", targets=targets, shard=shard))
        distributed.destroy_process_group()
    return found


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_kept_bytes_of_shards_are_those_of_the_plan(objective: str, sequence_parallel: bool) -> None:
    heads = {"num_attention_heads": 4, "conv_kernel_size": 3}
    config = run_config(model=MODEL | heads, objective={"name": objective}, data={"sequence_length": LENGTH})
    targets = math.ceil(config.objective.mask_rate * LENGTH)
    batch = MicroBatch(BATCH, LENGTH, targets, attention="cpu", tensor=2, sequence_parallel=sequence_parallel)
    forward = _forward(config, batch)
    measure = functools.partial(_kept_by_shards, sequence_parallel=sequence_parallel)
    for found in run_ranks(measure, 1, config, targets, distributed=False)[0]:
        assert forward.kept + forward.kept_logits == pytest.approx(found, rel=0.05)
