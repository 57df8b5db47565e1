"""Planned against kept bytes of a medium model on a CPU, as a table: ``python benchmarks/plan_memory.py``.

The model is half as wide as base: six layers of 384, sequences of 512 tokens. The allocator is asked what it still
holds when a forward pass is done. Takes about two minutes, 2 GB and a C++ compiler.
"""

import math
import sys
from dataclasses import replace
from itertools import product

from kept_bytes import kept_bytes

from megadeberta.config.run import RunConfig
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import Update
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
    cases += product(["v3"], ["mlm"], ["cpu, compiled"], [False])
    for shape, name, chosen, recompute in cases:
        attention, _, compiled = chosen.partition(", ")
        config = _config(SHAPES[shape], name)
        targets = math.ceil(config.objective.mask_rate * LENGTH)
        batch = MicroBatch(BATCH, LENGTH, targets, attention=attention, activation_checkpointing=recompute)
        batch = replace(batch, compiled=bool(compiled))
        planned = _planned(config, batch)
        sizes = {"targets": targets, "batch": BATCH, "length": LENGTH}
        kept = kept_bytes(
            config.model, config.objective, attention, recompute=recompute, compiled=bool(compiled), **sizes
        )
        is_on = "yes" if recompute else "no"
        row = (shape, name, chosen, is_on, f"{planned / 1e6:.1f}", f"{kept / 1e6:.1f}", f"{planned / kept:.3f}")
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()


def _config(shape: dict[str, object], objective: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "medium",
            "model": SIZES | shape,
            "data": {"train": "none", "tokenizer": "none", "sequence_length": LENGTH},
            "objective": {"name": objective},
            "optimizer": {"lr": 1e-4},
            "training": {"steps": 1, "output_dir": "none"},
            "deepspeed": {},
        }
    )


def _planned(config: RunConfig, batch: MicroBatch) -> int:
    layout = Layout(tensor=1, pipeline=1, data=1, zero_stage=0, micro_batch=BATCH, accumulation=1)
    (stage,) = Recipe(config).stages(layout)
    # One update of the whole model: both parts of replaced token detection are kept at once.
    forward = forward_memory(stage, batch, updates=(Update(None, {}),))
    return forward.kept + forward.kept_logits


if __name__ == "__main__":
    main()
