"""A loss that jumps: the run goes back and passes over samples, the same way uninterrupted and stopped and resumed."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from megadeberta.checkpoint.manifest import FileRecord, Manifest, read_manifest
from megadeberta.errors import DivergenceError
from megadeberta.preflight.run import prepare_run
from megadeberta.rank.environment import apply, detect_ranks
from megadeberta.rank.heartbeat import Heartbeat
from tests.e2e.tiny_run import write_recipe
from tests.ranks import run_ranks

INTERVAL, STOP, STEPS = 3, 9, 15
# Tiny batches: the loss goes up and down by some percent at every step, and what that is called is a matter of taste.
TOUCHY = {"spike_factor": 1.005, "spike_window": 2, "spike_limit": 40, "replicas_every": 2}


def _train(rank: int, world_size: int, recipe: Path, steps: int) -> int:
    """As `megadeberta train` does, where torch is loaded already."""
    from megadeberta.train import train

    ranks = detect_ranks(os.environ)
    prepared = prepare_run(recipe, [f"training.steps={steps}"], world_size=world_size)
    os.environ.update(apply(os.environ))
    return train(prepared, ranks, Heartbeat(rank))


def _run(folder: Path, prepared: Path, *stops: int, asynchronous: bool = False, **numerics: object) -> Path:
    folder.mkdir()
    recipe = write_recipe(
        folder,
        prepared,
        schedule__name="constant",
        schedule__warmup_steps=2,
        optimizer__lr=3e-3,
        checkpoint__interval=INTERVAL,
        checkpoint__asynchronous=asynchronous,
        training__eval_interval=STEPS,
        numerics=TOUCHY | numerics,
    )
    for stop in stops:
        assert run_ranks(_train, 2, recipe, stop, distributed=False) == [0, 0]
    return folder / "run"


def _records(run: Path) -> list[dict[str, object]]:
    """Of every step and event, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "grad_norm", "lr")
    return [
        {name: value for name, value in row.items() if name in kept or name.startswith(("spike_", "passed_over_"))}
        for row in rows
        if "loss" in row or "spike_step" in row
    ]


def _last(run: Path) -> Manifest:
    return read_manifest(run / "checkpoints" / f"step-{STEPS}")


def _tensors(manifest: Manifest) -> dict[str, FileRecord]:
    return {name: file for name, file in manifest.files.items() if name.endswith(".safetensors")}


def test_samples_behind_a_spike_are_passed_over_and_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, prepared: Path
) -> None:
    whole = _run(tmp_path / "whole", prepared, STEPS)
    parts = _run(tmp_path / "parts", prepared, STOP, STEPS, asynchronous=True)
    records = _records(whole)
    assert _records(parts) == records
    assert _tensors(_last(parts)) == _tensors(_last(whole))
    assert _last(parts).run.spikes == _last(whole).run.spikes
    windows = _last(whole).run.spikes.windows
    assert windows, "the loss never jumped"
    assert [row["step"] for row in records if "loss" in row] == list(range(1, STEPS + 1))
    events = [(row["passed_over_first_sample"], row["spike_loss"]) for row in records if "spike_step" in row]
    assert events == [(window.first_sample, window.loss) for window in windows]
    for window in windows:
        assert window.loss > TOUCHY["spike_factor"] * window.median
        assert 0 < window.stop_sample - window.first_sample <= INTERVAL * 4
    for before, after in pairwise(windows):
        assert before.stop_sample <= after.first_sample, "no sample is met again"


def test_a_spike_that_comes_again_behind_every_window_ends_the_run(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DivergenceError, match=r"step \d+: the loss .* times the median .*, and 1 windows of samples"):
        _run(tmp_path / "run", prepared, STEPS, spike_limit=1, spike_factor=1.0001)
