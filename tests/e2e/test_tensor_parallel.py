"""Tensor parallelism through the real command line: the losses of one process."""

import json
from pathlib import Path

import pytest

from tests.e2e.tiny_run import finish, start, write_recipe

SHORT = {"training__steps": 6, "schedule__warmup_steps": 2, "training__eval_interval": 6, "checkpoint__interval": 6}


def _metrics(run: Path) -> list[dict[str, float]]:
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
    expected, found = (_metrics(tmp_path / name / "run") for name in ("one", "two"))
    assert len(expected) > 6
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
