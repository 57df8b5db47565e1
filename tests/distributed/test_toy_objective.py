"""An objective that one file adds trains under every layout, and goes the whole way through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megadeberta.config.objective import ObjectiveConfig
from tests.distributed.layouts import CLOSE, VARIANTS, Layout, RankTrace, Trace, join_ranks, train_rank
from tests.e2e.tiny_run import finish, start, write_recipe
from tests.ranks import run_ranks

LAYOUTS = [
    Layout("toy", tensor=2, zero=1, sequence_parallel=True, recompute=True),
    Layout("toy", pipeline=2, zero=1, micro_batch=2),
]
MORE_LAYOUTS = [
    Layout("toy", tensor=2),
    Layout("toy", pipeline=2, tensor=2, zero=1, micro_batch=2, sequence_parallel=True),
    Layout("toy", data=2, zero=3, micro_batch=1),
]


def _train(rank: int, world_size: int, layout: Layout) -> RankTrace:
    """In the ranks only: the other tests must not find it in the tables."""
    import tests.toy_objective  # noqa: F401

    VARIANTS["toy"] = (VARIANTS["v3"][0], ObjectiveConfig(name="mlm_length"))
    return train_rank(rank, world_size, layout, 10)


def _run(layout: Layout) -> Trace:
    return join_ranks(run_ranks(_train, layout.topology.world_size, layout, timeout=240.0))


@pytest.fixture(scope="module")
def alone() -> Trace:
    return _run(Layout("toy"))


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.campaign) for layout in MORE_LAYOUTS)], ids=str
)
def test_it_trains_under_every_layout_as_in_one_process(layout: Layout, alone: Trace) -> None:
    found = _run(layout)
    assert found.losses == pytest.approx(alone.losses, abs=CLOSE)
    assert found.held_out == pytest.approx(alone.held_out, abs=CLOSE)
    assert found.parameters.keys() == alone.parameters.keys()
    assert alone.losses[-1] != alone.losses[0]


def _megadeberta(*arguments: str) -> str:
    command = [sys.executable, "-m", "megadeberta", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_planned_trained_plotted_reported_evaluated_and_exported(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        prepared,
        objective={"name": "mlm_length", "options": {"length_weight": 0.25}},
        plugins=["tests.toy_objective"],
        training__steps=4,
        training__eval_interval=2,
        schedule__warmup_steps=1,
        logging__plot=True,
    )
    run = tmp_path / "run"
    assert "GiB a rank" in _megadeberta("train", str(recipe), "--dry-run")
    assert "layouts fit" in _megadeberta("plan", str(recipe), "--gpus", "2", "--memory", "16")
    process = start(recipe, "--set", "parallel.pipeline=2", ranks=2)
    output = finish(process)
    assert process.returncode == 0, output
    assert " len " in output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0].keys() >= {"mlm_loss", "length_loss", "length_accuracy", "length_targets"}
    assert (run / "loss_curve.png").stat().st_size > 10_000  # a panel for each of its losses
    plugin = ("--plugin", "tests.toy_objective")
    report = _megadeberta("report", str(run), *plugin)
    assert "len " in report
    assert "validation MLM loss" in report
    assert "length loss" in _megadeberta("evaluate", str(run), "--sequences", "4", *plugin)
    for model in ("mlm", "backbone"):
        _megadeberta("convert", "export", str(run), str(tmp_path / model), "--model", model, *plugin)
        card = (tmp_path / model / "README.md").read_text()
        assert "masked language modelling and sequence length" in card
