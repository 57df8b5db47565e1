"""Tensor parallelism and pipelines through the real command line: the losses of one process, whenever they begin."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.tiny_run import finish, start, write_recipe

SHORT = {"training__steps": 6, "schedule__warmup_steps": 2, "training__eval_interval": 6}
KEEP_ALL = {"checkpoint__interval": 2, "checkpoint__keep_last": 9}
RTD = {"name": "rtd", "rtd": {"generator_layers": 2, "loss_weight": 10.0}}


def _metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("step", "loss", "grad_norm", "valid_loss")
    found = [{key: row[key] for key in wanted if key in row} for row in rows]
    return [row for row in found if len(row) > 1]  # without those that say how long a checkpoint took


def _assert_equal(found: Path, expected: Path) -> None:
    rows, wanted = _metrics(found), _metrics(expected)
    assert [sum(key in row for row in wanted) for key in ("loss", "valid_loss")] == [6, 1]
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def _train_alone(folder: Path, prepared: Path, **changes: object) -> Path:
    process = start(write_recipe(folder, prepared, **SHORT, **KEEP_ALL, **changes), ranks=1)
    output = finish(process)
    assert process.returncode == 0, output
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Folder of a run of one process, with the checkpoints of steps 2, 4 and 6."""
    return _train_alone(tmp_path_factory.mktemp("alone"), prepared)


def test_two_ranks_that_share_tensors_and_tokens_train_as_one(tmp_path: Path, prepared: Path, alone: Path) -> None:
    parallel = {"timeout_seconds": 60, "tensor": 2, "sequence_parallel": True, "activation_checkpointing": True}
    changes = {"checkpoint__interval": 6, "logging__profile_steps": [2, 3]}
    process = start(write_recipe(tmp_path, prepared, **SHORT, **changes, parallel=parallel), ranks=2)
    output = finish(process)
    assert process.returncode == 0, output
    _assert_equal(tmp_path / "run", alone / "run")
    names = {path.name for path in (tmp_path / "run" / "profile").iterdir()}
    assert names == {f"steps-2-3-rank-{rank}.json.gz" for rank in range(2)}
    assert "profiler_start" not in output


def _forget_after(run: Path, step: int) -> None:
    """As if the run had been killed before it saved what came after ``step``."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    (run / "checkpoints" / "latest").write_text(f"step-{step}\n")


def _go_on_and_back(folder: Path, prepared: Path, alone: Path, override: str, layout: str, **changes: object) -> None:
    """Steps 3 and 4 of what ran alone under the layout, steps 5 and 6 alone again, under ZeRO 3."""
    run = Path(shutil.copytree(alone / "run", folder / "run"))
    recipe = write_recipe(folder, prepared, **SHORT, **KEEP_ALL, **changes)
    _forget_after(run, 2)
    process = start(recipe, "--set", override, "--set", "checkpoint.interval=1", ranks=2)
    assert f"going on with 2 ranks ({layout}), ZeRO stage 1" in finish(process)
    _forget_after(run, 4)
    process = start(recipe, "--set", "deepspeed.zero_optimization.stage=3", ranks=1)
    assert "going on with 1 ranks (tensor 1 x pipeline 1 x data 1), ZeRO stage 3" in finish(process)
    _assert_equal(run, alone / "run")


def test_a_run_goes_on_with_shared_tensors_and_back_with_the_same_losses(
    tmp_path: Path, prepared: Path, alone: Path
) -> None:
    _go_on_and_back(tmp_path, prepared, alone, "parallel.tensor=2", "tensor 2 x pipeline 1 x data 1")


def test_a_run_becomes_a_pipeline_and_one_process_again_with_the_same_losses(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = _train_alone(tmp_path / "alone", prepared, objective=RTD)
    layout = "tensor 1 x pipeline 2 x data 1"
    _go_on_and_back(tmp_path, prepared, alone, "parallel.pipeline=2", layout, objective=RTD)
