"""A gradient that is not finite on one rank: the run passes over the step, says which samples, and resumes exactly."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from megadeberta.engine.step import Stepper
from megadeberta.engine.whole_step import WholeStepper
from megadeberta.errors import DivergenceError
from megadeberta.preflight.run import prepare_run
from megadeberta.rank.environment import apply, detect_ranks
from megadeberta.rank.heartbeat import Heartbeat
from tests.e2e.tiny_run import write_recipe
from tests.ranks import run_ranks

BAD_STEPS = (4, 5)
BATCH, STEPS = 4, 9


def _train(rank: int, world_size: int, recipe: Path, steps: int) -> int:
    """As `megadeberta train` does, with a loss that has no finite gradient on rank 1 at some steps."""
    from megadeberta.train import train

    number = 0
    launch, loss = Stepper.launch_step, Stepper._loss

    def counted(self: Stepper, *batches: Any, step: int, **more: Any) -> Any:
        nonlocal number
        number = step + 1
        return launch(self, *batches, step=step, **more)

    def poisoned(self: Stepper, *arguments: Any) -> Tensor:
        factor = math.nan if rank == 1 and number in BAD_STEPS else 1.0
        return loss(self, *arguments) * factor

    WholeStepper.launch_step, WholeStepper._loss = counted, poisoned  # type: ignore[method-assign]
    ranks = detect_ranks(os.environ)
    prepared = prepare_run(recipe, [f"training.steps={steps}"], world_size=world_size)
    os.environ.update(apply(os.environ))
    return train(prepared, ranks, Heartbeat(rank))


def _run(folder: Path, prepared: Path, *stops: int, limit: int) -> list[dict[str, Any]]:
    folder.mkdir()
    constant = {"schedule__name": "constant", "schedule__warmup_steps": 2}
    numerics = {"skip_limit": limit}
    recipe = write_recipe(folder, prepared, **constant, training__eval_interval=STEPS, numerics=numerics)
    for stop in stops:
        assert run_ranks(_train, 2, recipe, stop, distributed=False) == [0, 0]
    kept = ("step", "loss", "grad_norm", "refused", "first_sample", "stop_sample")
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [{name: row[name] for name in kept if name in row} for row in rows if "loss" in row or "refused" in row]


def test_a_run_goes_on_behind_steps_that_are_not_finite_and_says_which_samples_they_had(
    tmp_path: Path, prepared: Path
) -> None:
    rows = _run(tmp_path / "whole", prepared, STEPS, limit=2)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    refused = [row for row in rows if "refused" in row]
    assert [row["step"] for row in refused] == list(BAD_STEPS)
    for row in refused:
        assert row["refused"] == "the gradient norm is nan while the loss is finite; no weight was changed at this step"
        assert (row["first_sample"], row["stop_sample"]) == (BATCH * (row["step"] - 1), BATCH * row["step"])
    assert all(math.isfinite(row["loss"]) for row in rows if row not in refused)


@pytest.mark.campaign
def test_stopped_between_steps_that_are_passed_over_it_resumes_exactly(tmp_path: Path, prepared: Path) -> None:
    whole = _run(tmp_path / "whole", prepared, STEPS, limit=2)
    assert _run(tmp_path / "parts", prepared, BAD_STEPS[0], STEPS, limit=2) == whole


@pytest.mark.campaign
def test_one_more_in_a_row_than_the_limit_ends_the_run(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DivergenceError, match=r"step 5: the gradient norm is nan .*, as 1 before it were\. Lower"):
        _run(tmp_path / "run", prepared, STEPS, limit=1)
