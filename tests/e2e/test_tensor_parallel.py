"""Tensor parallelism through the real command line: the losses of one process."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.tiny_run import finish, start, write_recipe

SHORT = {"training__steps": 6, "schedule__warmup_steps": 2, "training__eval_interval": 6, "checkpoint__interval": 6}


def metrics_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("step", "loss", "grad_norm", "eval_loss")
    return [{key: row[key] for key in wanted if key in row} for row in rows]


def test_two_ranks_that_share_tensors_and_tokens_train_as_one(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = write_recipe(tmp_path / "one", prepared, **SHORT)
    parallel = {"timeout_seconds": 60, "tensor": 2, "sequence_parallel": True, "activation_checkpointing": True}
    two = write_recipe(tmp_path / "two", prepared, **SHORT, parallel=parallel)
    processes = [start(one, ranks=1), start(two, ranks=2)]
    outputs = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    expected, found = (metrics_of(tmp_path / name / "run") for name in ("one", "two"))
    assert len(expected) > 6
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


def forget_after(run: Path, step: int) -> None:
    """As if the run had been killed before it saved what came after ``step``."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    (run / "checkpoints" / "latest").write_text(f"step-{step}\n")


def test_a_run_goes_on_under_another_layout_and_back_with_the_same_losses(tmp_path: Path, prepared: Path) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, prepared, **(SHORT | {"checkpoint__interval": 2, "checkpoint__keep_last": 9}))
    process = start(recipe, ranks=1)
    output = finish(process)
    assert process.returncode == 0, output
    expected = metrics_of(run)
    forget_after(run, 2)
    process = start(recipe, "--set", "parallel.tensor=2", "--set", "checkpoint.interval=1", ranks=2)
    assert "going on with 2 ranks (tensor 2 x pipeline 1 x data 1), ZeRO stage 1" in finish(process)
    forget_after(run, 4)
    process = start(recipe, "--set", "deepspeed.zero_optimization.stage=3", ranks=1)
    assert "going on with 1 ranks (tensor 1 x pipeline 1 x data 1), ZeRO stage 3" in finish(process)
    for row, wanted in zip(metrics_of(run), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
