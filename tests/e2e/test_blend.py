"""A run on two sources through the real command line, whose weights change when it resumes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from megadeberta.checkpoint.manifest import read_manifest
from tests.e2e.tiny_run import finish, losses, start, write_recipe

SAVED, STEPS, BATCH = 5, 9, 4


def _train(recipe: Path, steps: int, de: float) -> str:
    arguments = ("--set", f"training.steps={steps}", "--set", f"data.train.de.weight={de}")
    process = start(recipe, *arguments, ranks=1)
    output = finish(process, timeout=600)
    assert process.returncode == 0, output
    return output


def _recipe(folder: Path, prepared: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return write_recipe(
        folder,
        prepared,
        data__train={
            "en": {"prefix": str(prepared / "train"), "weight": 3},
            "de": {"prefix": str(prepared / "valid"), "weight": 1},
        },
        data__valid={"en": str(prepared / "valid"), "de": str(prepared / "train")},
        schedule={"name": "constant", "warmup_steps": 1},
        training__eval_interval=SAVED,
        deepspeed__train_micro_batch_size_per_gpu=BATCH,
    )


def test_weights_change_at_a_resume_and_the_checkpoint_says_where(tmp_path: Path, prepared: Path) -> None:
    recipe = _recipe(tmp_path / "one", prepared)
    run, checkpoints = tmp_path / "one" / "run", tmp_path / "one" / "run" / "checkpoints"
    shown = subprocess.run(
        [sys.executable, "-m", "megadeberta", "train", str(recipe), "--dry-run", "--set", f"training.steps={STEPS}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    shown = " ".join(shown.split())  # lines are as wide as the terminal
    assert "source de: " in shown and "25.0000% of the samples, " in shown and "epochs in the run" in shown

    output = _train(recipe, SAVED, de=1)
    assert "fractions of the samples: de 0.2500, en 0.7500" in output
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = next(record for record in records if "valid_loss" in record)
    parts = [validation[f"valid_loss/{name}"] for name in ("de", "en")]
    assert min(parts) < validation["valid_loss"] < max(parts)

    shutil.copytree(run, tmp_path / "saved")
    output = _train(recipe, STEPS, de=6)
    assert f"blend changed after step {SAVED} (sample {SAVED * BATCH}): de 0.250 -> 0.667, en 0.750 -> 0.333" in output
    segments = read_manifest(checkpoints / f"step-{STEPS}").run.blend
    assert [segment.first_sample for segment in segments] == [0, SAVED * BATCH]
    assert segments[:1] == read_manifest(tmp_path / "saved" / "checkpoints" / f"step-{SAVED}").run.blend
    trace = losses(run)
    assert [step for step, _, _ in trace] == list(range(1, STEPS + 1))

    # From the same checkpoint once more: the same.
    shutil.rmtree(run)
    (tmp_path / "saved").rename(run)
    _train(recipe, STEPS, de=6)
    assert losses(run) == trace
    assert read_manifest(checkpoints / f"step-{STEPS}").run.blend == segments
