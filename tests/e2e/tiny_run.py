"""A run of seconds through the real command line, for tests that stop, kill and resume it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.models import recipe, write_json

STEPS = 32
_TAIL_BYTES = 1 << 14

Losses = list[tuple[int, str, str]]


def write_recipe(folder: Path, prepared: Path, **changes: object) -> Path:
    """A recipe for the shards in ``prepared``; ``changes`` are dotted keys with ``__`` for the dots."""
    values = recipe(
        model={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "position_buckets": 16,
        },
        data={
            "train": str(prepared / "train"),
            "valid": str(prepared / "valid"),
            "tokenizer": str(prepared / "tokenizer" / "spm.model"),
            "sequence_length": 48,
            "loader_workers": 0,
        },
        schedule={"warmup_steps": 4},
        training={"steps": STEPS, "output_dir": str(folder / "run"), "eval_interval": 11, "eval_sequences": 8},
        checkpoint={"interval": 3},
        logging={"tensorboard": False, "plot": False, "peak_tflops": 0.1},
        parallel={"timeout_seconds": 60},
        deepspeed={
            "train_batch_size": 4,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
        },
    )
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        node = values
        for section in sections:
            node = node[section]
        node[key] = value
    return write_json(folder / "recipe.json", values)


def start(path: Path, *arguments: str, ranks: int = 2, **environ: str) -> subprocess.Popen:
    """`megadeberta launch` of a recipe in a process group of its own."""
    command = [sys.executable, "-m", "megadeberta", "launch", str(path), "--ranks", str(ranks), *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, "DS_ACCELERATOR": "cpu", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, *, timeout: float = 180) -> str:
    """Wait for the end; the whole output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"did not end within {timeout} s:\n{output}") from None
    return output


def losses(run: Path) -> Losses:
    """(step, loss, gradient norm) of every training step in the metrics file, floats as exact text."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], float.hex(row["loss"]), float.hex(row["grad_norm"])) for row in rows if "loss" in row]


def last_step(run: Path) -> int:
    """The last step in the metrics file, from its end alone: it is asked many times a second; 0 before there is one."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return 0
    whole = tail[: tail.rfind(b"\n") + 1]  # the rest is being written
    found = re.findall(rb'"step": ?(\d+)[^\n]*"loss"|"loss"[^\n]*"step": ?(\d+)', whole)
    return max((int(one or other) for one, other in found), default=0)
