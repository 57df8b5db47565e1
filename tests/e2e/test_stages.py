"""Stages through the real command line: a cool-down equals, bit for bit, the run that was planned with this decay.

An extension scores as before at the old length.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megadeberta.checkpoint.manifest import read_manifest
from megadeberta.errors import ConfigError
from megadeberta.evaluate.run import evaluate
from megadeberta.stages.extend import write_extension
from tests.e2e.tiny_run import finish, losses, start, write_recipe

HALF, WHOLE = 6, 12
CONSTANT = {
    "schedule__name": "constant",
    "schedule__warmup_steps": 2,
    "training__eval_interval": WHOLE,
    "checkpoint__interval": 3,
    "checkpoint__keep_last": 1,
    "checkpoint__keep_every": HALF,
}


def _run(folder: Path, prepared: Path, *arguments: str, ranks: int = 1, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    output = _launch(write_recipe(folder, prepared, **CONSTANT, **changes), *arguments, ranks=ranks)
    assert f"done after step {WHOLE}" in output
    return folder / "run"


def _launch(recipe: Path, *arguments: str, ranks: int = 1) -> str:
    process = start(recipe, *arguments, ranks=ranks)
    output = " ".join(finish(process).split())
    assert process.returncode == 0, output
    return output


def _cool(checkpoint: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "megadeberta", "cooldown", str(checkpoint), "--output", str(output)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A run with a constant rate, with the checkpoint of its half."""
    return _run(tmp_path_factory.mktemp("constant"), prepared, training__steps=WHOLE)


def test_a_cooldown_equals_the_run_that_was_planned_so_also_resumed_under_another_layout(
    tmp_path: Path, prepared: Path, constant: Path
) -> None:
    schedule = {"name": "wsd", "warmup_steps": 2, "decay_steps": WHOLE - HALF, "decay_shape": "1-sqrt"}
    planned = _run(tmp_path / "planned", prepared, training__steps=WHOLE, schedule=schedule)
    assert losses(planned)[:HALF] == losses(constant)[:HALF]

    checkpoint, cooled = constant / "checkpoints" / f"step-{HALF}", tmp_path / "cooled"
    done = _cool(checkpoint, cooled, "--steps", str(WHOLE - HALF))
    assert done.returncode == 0, done.stderr
    output = _launch(cooled / "cooldown.json", "--set", "checkpoint.keep_last=9")
    assert f"this run began with {checkpoint}, step {HALF} (sha256 " in output
    assert losses(cooled) == losses(planned)[HALF:]
    origin = read_manifest(cooled / "checkpoints" / f"step-{WHOLE}").run.origin
    assert origin is not None
    assert (origin.checkpoint, origin.step, origin.changed) == (str(checkpoint), HALF, {})

    # Its end again, on two ranks that share the tensors; what it began with is not needed any more.
    whole = _metrics(cooled)
    shutil.rmtree(cooled / "checkpoints" / f"step-{WHOLE}")
    (cooled / "checkpoints" / "latest").write_text("step-9\n")
    checkpoint.rename(tmp_path / "away")
    output = _launch(cooled / "cooldown.json", "--set", "parallel.tensor=2", ranks=2)
    (tmp_path / "away").rename(checkpoint)
    assert "going on with 2 ranks (tensor 2 x pipeline 1 x data 1)" in output
    assert f"this run began with {checkpoint}" in output
    for row, wanted in zip(_metrics(cooled), whole, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.campaign
def test_a_cooldown_on_other_data_is_recorded(tmp_path: Path, prepared: Path, constant: Path) -> None:
    checkpoint, cooled = constant / "checkpoints" / f"step-{HALF}", tmp_path / "cooled"
    changes = ("--set", f"data.train={prepared / 'valid'}", "--set", "objective.mask_rate=0.3")
    done = _cool(checkpoint, cooled, "--steps", "2", *changes)
    assert done.returncode == 0, done.stderr
    output = _launch(cooled / "cooldown.json")
    assert "objective.mask_rate was 0.15" in output
    origin = read_manifest(cooled / "checkpoints" / f"step-{HALF + 2}").run.origin
    assert origin is not None and origin.changed.keys() == {"data.train", "objective.mask_rate"}

    done = _cool(cooled, tmp_path / "again", "--steps", "2")
    assert done.returncode == 2
    assert "a decay from 0.001 would begin with a jump" in done.stderr
    done = _cool(checkpoint, cooled, "--steps", "2")
    assert done.returncode == 2 and "holds a run already" in done.stderr


def _metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "loss", "grad_norm", "valid_loss") if key in row} for row in rows]


def test_an_extension_scores_as_before_at_the_old_length_and_trains_at_the_new_one(
    tmp_path: Path, prepared: Path, constant: Path
) -> None:
    checkpoint, longer = constant / "checkpoints" / f"step-{HALF}", tmp_path / "longer"
    stage = write_extension(checkpoint, longer, length=128, steps=2, warmup_steps=1)
    before, after = (
        evaluate(folder, shard=prepared / "valid", sequences=8, length=48) for folder in (checkpoint, longer / "start")
    )
    assert before["mlm_loss"] == pytest.approx(after["mlm_loss"], abs=1e-5)
    assert stage.config.model.relative_span == 64

    output = _launch(stage.recipe)
    assert "done after step 2" in output
    with pytest.raises(ConfigError, match=r"--length 48: the run was trained on 48 tokens per sequence; give more"):
        write_extension(checkpoint, tmp_path / "no", length=48, steps=2)


@pytest.mark.campaign
def test_the_two_phases_of_camembertav2_at_toy_size(tmp_path: Path, prepared: Path) -> None:
    """The shipped recipe, small: 48 tokens, then 96 with a warm-up of its own, by the commands of docs/recipes.md."""
    small = {
        "model.vocab_size": 1024,
        "model.hidden_size": 32,
        "model.num_hidden_layers": 4,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 64,
        "model.max_position_embeddings": 48,
        "model.max_relative_positions": 48,
        "model.position_buckets": 16,
        "data.train": prepared / "train",
        "data.valid": prepared / "valid",
        "data.tokenizer": prepared / "tokenizer" / "spm.model",
        "data.sequence_length": 48,
        "schedule.warmup_steps": 2,
        "training.steps": WHOLE,
        "training.output_dir": tmp_path / "first",
        "training.eval_sequences": 8,
        "deepspeed.train_batch_size": 4,
        "deepspeed.train_micro_batch_size_per_gpu": 4,
        "deepspeed.bf16.enabled": "false",
    }
    overrides = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    assert f"done after step {WHOLE}" in _launch(Path("camembertav2-base"), *overrides)
    second = tmp_path / "second"
    words = ["extend", str(tmp_path / "first"), "--output", str(second), "--length", "96", "--steps", "4"]
    command = [sys.executable, "-m", "megadeberta", *words, "--warmup-steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "done after step 4" in _launch(second / "extend.json")
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows if "lr" in row][:2] == [0.0, pytest.approx(5e-4)]
    assert read_manifest(second / "checkpoints" / "step-4").run.config["data"]["sequence_length"] == 96
