"""Planned against kept bytes of a medium model on a CPU, as a table: ``python -m benchmarks.plan_memory``.

The model is half as wide as base: six layers of 384, sequences of 512 tokens. The allocator is asked what it still
holds when a forward pass is done. Takes about a minute and 2 GB.
"""

import math
import sys
from itertools import product

from benchmarks.kept_bytes import kept_bytes
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.layers.kept import Work
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import forward_memory
from megadeberta.plan.stages import Recipe

BATCH, LENGTH = 2, 512
SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
SHAPES = {
    "v3": {},
    "v2": {"conv_kernel_size": 3},
    "v1": {"key_bias": False, "share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"},
}


def main() -> None:
    """Print one row a case."""
    sys.stdout.write("| model | objective | attention | checkpointing | planned MB | kept MB | planned / kept |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    cases = [*product(SHAPES, ["mlm"], ["cpu", "cpu-lean", "reference"], [False, True])]
    cases += product(["v3"], ["rtd"], ["cpu", "reference"], [False, True])
    for shape, name, attention, recompute in cases:
        model = ModelConfig.model_validate(SIZES | SHAPES[shape])
        objective = ObjectiveConfig.model_validate({"name": name})
        targets = math.ceil(objective.mask_rate * LENGTH)
        planned = _planned(model, objective, Work(BATCH, LENGTH, targets, "fp32", attention), recompute=recompute)
        kept = kept_bytes(model, objective, attention, targets=targets, batch=BATCH, length=LENGTH, recompute=recompute)
        is_on = "yes" if recompute else "no"
        row = (shape, name, attention, is_on, f"{planned / 1e6:.1f}", f"{kept / 1e6:.1f}", f"{planned / kept:.3f}")
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()


def _planned(model: ModelConfig, objective: ObjectiveConfig, work: Work, *, recompute: bool) -> int:
    config = RunConfig.model_validate(
        {
            "name": "medium",
            "model": model.model_dump(),
            "data": {"train": "none", "tokenizer": "none", "sequence_length": LENGTH},
            "objective": objective.model_dump(),
            "optimizer": {"lr": 1e-4},
            "training": {"steps": 1, "output_dir": "none"},
            "deepspeed": {},
        }
    )
    recipe = Recipe(config)
    layout = Layout(tensor=1, pipeline=1, data=1, zero_stage=0, micro_batch=BATCH, accumulation=1)
    forward = forward_memory(recipe, recipe.stages(layout)[0], work, recompute=recompute)
    return forward.kept + forward.kept_logits


if __name__ == "__main__":
    main()
