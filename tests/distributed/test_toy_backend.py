"""A backend of attention that one file adds trains under every layout, is planned, and is named in the log."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from megadeberta.assembly import assemble
from megadeberta.cli import app
from megadeberta.config.run import RunConfig
from megadeberta.engine.process_group import start_process_group
from megadeberta.ops.attention.backends import BACKENDS, register_backend
from megadeberta.plan.memory import memory_of_stages
from megadeberta.plan.stages import Recipe
from tests.distributed.layouts import Layout, train_steps
from tests.models import recipe, write_json
from tests.ranks import run_ranks
from tests.unit.plan.small import layout

LAYOUTS = [Layout("v3", tensor=2), Layout("v3", pipeline=2, zero=1, micro_batch=2)]


def _train(rank: int, world_size: int, layout: Layout, attention: str) -> tuple[str, list[tuple[float, float]]]:
    """The line for the log, and (loss, gradient norm) of each step."""
    import tests.toy_backend  # noqa: F401  # in the ranks only: the other tests must not find it in the table

    config = layout.config
    config = config.model_copy(update={"training": config.training.model_copy(update={"attention": attention})})
    assembly = assemble(config, layout.topology, start_process_group(60.0))
    return assembly.attention.line, train_steps(assembly, layout, range(6))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_trains_as_the_reference_does(layout: Layout) -> None:
    toy, reference = (run_ranks(_train, 2, layout, attention) for attention in ("toy", "reference"))
    assert toy[0][0] == "attention toy: toy on cpu"
    # fp32 rounding differs by about 1e-7 a step and grows along the trajectory.
    for (_, found), (_, expected) in zip(toy, reference, strict=True):
        assert [value for step in found for value in step] == pytest.approx(
            [value for step in expected for value in step], rel=1e-5
        )


@pytest.fixture
def _registered() -> Iterator[None]:
    """In this process for the time of a test."""
    with patch.dict(BACKENDS):
        from tests.toy_backend import TOY

        register_backend(TOY)  # the import does nothing the second time
        yield


@pytest.mark.usefixtures("_registered")
def test_a_dry_run_plans_it(tmp_path: Path) -> None:
    arguments = ["train", str(write_json(tmp_path / "tiny.json", recipe())), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--set", "training.attention=toy"], catch_exceptions=False)
    (line,) = [line for line in done.output.splitlines() if line.startswith("memory ")]
    assert line.endswith("(estimated, attention toy)")


@pytest.mark.usefixtures("_registered")
def test_memory_is_what_it_says_it_keeps() -> None:
    plan = Recipe(RunConfig.model_validate(recipe()))
    kept = {name: memory_of_stages(plan, layout(micro_batch=8), name)[0].activations for name in ("toy", "reference")}
    # Both terms: 64 numbers of all heads in 4 bytes, for 8 x 64 keys and the query rows: 64 in the first layer, and two
    # passes over 16 slots in the second one, the mask decoder.
    assert kept["toy"] - kept["reference"] == 2 * 64 * 4 * 8 * 64 * (64 + 2 * 16)


@pytest.mark.usefixtures("_registered")
def test_a_plan_names_it(tmp_path: Path) -> None:
    arguments = ["plan", str(write_json(tmp_path / "tiny.json", recipe())), "--gpus", "2", "--memory", "16"]
    done = CliRunner().invoke(app, [*arguments, "--set", "training.attention=toy"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "attention toy," in done.output
