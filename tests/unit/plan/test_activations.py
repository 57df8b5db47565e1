"""The activations of a plan are the bytes that autograd really keeps."""

import math

import pytest

from megadeberta.plan.activations import Attention, Work
from megadeberta.plan.memory import forward_memory
from megadeberta.plan.stages import Recipe
from tests.unit.plan.saved_bytes import BATCH, LENGTH, saved_bytes
from tests.unit.plan.small import layout, run_config

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
    "v1": {"key_bias": False, "share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"},
    "v2": {"conv_kernel_size": 3},
    "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "input positions": {"position_biased_input": True, "enhanced_mask_decoder": False},
    "absolute": {"relative_attention": False},
    "c2p alone": {"pos_att_type": ("c2p",)},
}


CASES = [(shape, "mlm", backend) for shape in SHAPES for backend in ("cpu", "reference")]
CASES += [("v3", "mlm", "cpu-lean"), ("v3", "rtd", "cpu"), ("v1", "rtd", "reference")]


@pytest.mark.parametrize(("shape", "objective", "backend"), CASES)
def test_kept_bytes_are_those_of_the_plan(shape: str, objective: str, backend: Attention) -> None:
    config = run_config(model=MODEL | SHAPES[shape], objective={"name": objective}, sequence_length=LENGTH)
    targets = math.ceil(config.objective.mask_rate * LENGTH)
    work = Work(BATCH, LENGTH, targets, "fp32", backend)
    recipe = Recipe(config)
    (stage,) = recipe.stages(layout(micro_batch=BATCH))
    forward = forward_memory(recipe, stage, work, recompute=False)
    found = saved_bytes(config.model, config.objective, backend, targets=targets)
    # Small vectors (masks, counts) are left out of the plan.
    assert forward.kept + forward.kept_logits == pytest.approx(found, rel=0.01)
