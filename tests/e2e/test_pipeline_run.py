"""A pipeline through the real command line: the losses of one process, before and after changes of the layout."""

from pathlib import Path

import pytest

from tests.e2e.test_tensor_parallel import SHORT, forget_after, metrics_of
from tests.e2e.tiny_run import finish, start, write_recipe

RTD = {"name": "rtd", "rtd": {"generator_layers": 2, "loss_weight": 10.0}}


def test_a_run_becomes_a_pipeline_and_one_process_again_with_the_same_losses(tmp_path: Path, prepared: Path) -> None:
    run = tmp_path / "run"
    changes = SHORT | {"checkpoint__interval": 2, "checkpoint__keep_last": 9, "objective": RTD}
    recipe = write_recipe(tmp_path, prepared, **changes)
    process = start(recipe, ranks=1)
    output = finish(process)
    assert process.returncode == 0, output
    expected = metrics_of(run)
    forget_after(run, 2)
    process = start(recipe, "--set", "parallel.pipeline=2", "--set", "checkpoint.interval=1", ranks=2)
    output = finish(process)
    assert "going on with 2 ranks (tensor 1 x pipeline 2 x data 1), ZeRO stage 1" in output
    forget_after(run, 4)
    process = start(recipe, "--set", "deepspeed.zero_optimization.stage=3", ranks=1)
    assert "going on with 1 ranks (tensor 1 x pipeline 1 x data 1), ZeRO stage 3" in finish(process)
    assert len(expected) > 6
    for row, wanted in zip(metrics_of(run), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
