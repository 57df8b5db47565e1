"""One pre-training run of the study: `megadeberta train` in a process of its own, on one thread."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from learning.plan import Run
from megadeberta.errors import DataError
from megadeberta.observability.metrics import METRICS_FILE


def train(run: Run, tokens: Path, folder: Path) -> dict[str, Any]:
    """Train ``run`` into ``folder``; a run that was stopped goes on.

    Args:
        tokens: what `megadeberta prep` made of the corpus.

    Returns: the validation curve, and what it took.

    Raises:
        DataError: the command failed.
    """
    recipe = run.write_recipe(folder, tokens)
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "megadeberta", "train", str(recipe)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{run.name}: megadeberta train ended with {done.returncode}: {done.stderr[-2000:]}")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    return {"curve": read_curve(folder / METRICS_FILE), "cpu_seconds": round(seconds, 1)}


def read_curve(metrics: Path) -> list[dict[str, float]]:
    """Step and losses of each validation."""
    records = (json.loads(line) for line in metrics.read_text().splitlines())
    names = ("valid_mlm_loss", "valid_rtd_loss", "valid_ar_loss")
    return [
        {"step": record["step"], **{name: record[name] for name in names if name in record}}
        for record in records
        if "valid_loss" in record
    ]
