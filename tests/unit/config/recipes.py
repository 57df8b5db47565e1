"""A small valid recipe for the tests of this folder."""

import copy
import json
from pathlib import Path
from typing import Any

VALID: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "position_buckets": 32,
    },
    "data": {"train": "shards/train", "tokenizer": "shards/spm.model", "sequence_length": 64},
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup_steps": 10},
    "training": {"steps": 100, "output_dir": "runs/tiny"},
    "deepspeed": {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4},
}


def recipe(**sections: Any) -> dict[str, Any]:
    """The valid recipe with values of some sections replaced: ``recipe(model={"hidden_size": 96})``."""
    values = copy.deepcopy(VALID)
    for section, content in sections.items():
        if isinstance(content, dict) and isinstance(values.get(section), dict):
            values[section].update(content)
        else:
            values[section] = content
    return values


def write(path: Path, values: Any) -> Path:
    """Write a recipe file."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
