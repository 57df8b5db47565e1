"""What a trained model of the study is worth: BLiMP, and fine-tuning and a linear probe on each labelled set."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers

from learning.labelled import SETS
from learning.probe import probe
from megadeberta.convert.quiet import quiet_transformers
from megadeberta.errors import CheckpointError
from megadeberta.evaluate.inputs import Pair
from megadeberta.evaluate.minimal_pairs import score_pairs
from megadeberta.evaluate.token_models import open_token_model
from megadeberta.finetune.model import load_tokenizer
from megadeberta.finetune.run import finetune
from megadeberta.finetune.settings import Point, Settings
from megadeberta.finetune.sift_settings import SiftSettings
from megadeberta.finetune.source import open_start
from megadeberta.finetune.tasks.table import find_task
from megadeberta.hf.switch import use_fast_attention

_ROWS_AT_ONCE = 32


def score_blimp(folder: Path, pairs: list[Pair]) -> dict[str, Any] | None:
    """Accuracy over all pairs, by field and by phenomenon; None of a model that predicts no masked tokens."""
    try:
        model, _, _ = open_token_model(folder)
    except CheckpointError:
        return None
    found = score_pairs(model, pairs, batch_size=_ROWS_AT_ONCE)
    shares = {"fields": found.fields, "phenomena": found.phenomena}
    rounded = {name: {key: round(value, 4) for key, value in values.items()} for name, values in shares.items()}
    return {"pairs": found.pairs, "accuracy": round(found.accuracy, 5), **rounded}


def probe_sets(folder: Path, sets: Path, tune: Mapping[str, Any]) -> dict[str, float]:
    """Test accuracy of the linear probe on each set."""
    found = {}
    with open_start(folder) as start, quiet_transformers():
        tokenizer = load_tokenizer(start)
        backbone = use_fast_attention(transformers.AutoModel.from_pretrained(start.folder, dtype=torch.float32).eval())
        for name in SETS:
            rows = tune["sets"][name]["rows"]
            found[name] = round(probe(backbone, tokenizer, sets / name, rows=rows, length=tune["length"]), 5)
    return found


def tuned(
    folder: Path, data: Path, tune: Mapping[str, Any], *, seed: int, sift: SiftSettings | None = None
) -> dict[str, float]:
    """Test accuracy of the best epoch of fine-tuning, the mean of a set's draws, and the CPU seconds of them all."""
    task, of_set = find_task("classification"), tune["sets"][data.name]
    settings = Settings(of_set["epochs"], tune["length"], (seed,), sift=sift)
    point = Point(of_set["lr"], of_set["batch_size"], warmup=tune["warmup"], dropout=tune["dropout"])
    started, found = time.process_time(), []
    for draw in sorted(data.glob("draw-*")):
        with tempfile.TemporaryDirectory() as scratch, open_start(folder) as start:
            splits = task.read(draw, {})
            out = Path(scratch) / "tuned"
            results = finetune(task, splits, start, out, points=[point], settings=settings, data=draw)
        found.append(results.kept().metrics["test"]["accuracy"])
    return {"tuned": round(mean(found), 5), "tuned_seconds": round(time.process_time() - started, 1)}
