"""A run in a few lines."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.errors import DataError
from megadeberta.preflight.summary import show
from tests.models import recipe, write_json


def _recipe(folder: Path, prepared: Path) -> Path:
    values = recipe(data={"sequence_length": 64}, training={"output_dir": str(folder / "run")})
    values["data"] = {"folder": str(prepared), "sequence_length": 64}
    return write_json(folder / "recipe.json", values)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_dry_run_fits_the_terminal_and_shows_no_json_unless_asked(tmp_path: Path, prepared: Path, columns: int) -> None:
    path = _recipe(tmp_path, prepared)
    done = CliRunner().invoke(app, ["train", str(path), "--dry-run"], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    own = [line for line in lines if str(tmp_path) not in line]  # a path is never broken
    assert max(map(len, own)) <= columns
    assert len(lines) < 30
    assert {line[:11].strip() for line in lines} >= {"run", "model", "data", "batch", "length", "optimizer", "memory"}
    assert '"optimizer"' not in done.output
    shown = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--show-recipe"])
    assert '"optimizer": {' in shown.output


def test_a_mistyped_path_fails_the_dry_run_where_something_is_there(tmp_path: Path, prepared: Path) -> None:
    arguments = ["train", str(_recipe(tmp_path, prepared)), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--set", f"data.train={prepared}"])
    assert isinstance(done.exception, DataError)
    assert f"did you mean {prepared}/train?" in str(done.exception)


def test_validation_on_what_is_trained_on_is_said(tmp_path: Path, prepared: Path) -> None:
    data = {"tokenizer": str(prepared / "tokenizer" / "spm.model"), "train": str(prepared / "train")}
    for name, is_said in (("valid", False), ("train", True)):
        values = recipe(data={**data, "valid": str(prepared / name), "sequence_length": 64})
        done = CliRunner().invoke(app, ["train", str(write_json(tmp_path / f"{name}.json", values)), "--dry-run"])
        assert done.exit_code == 0, done.output
        assert ("the validation text is trained on too" in " ".join(done.output.split())) is is_said


def test_without_any_data_the_dry_run_checks_the_rest(tmp_path: Path) -> None:
    path = write_json(tmp_path / "recipe.json", recipe(data={"sequence_length": 64}))
    done = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert done.exit_code == 0
    assert "shards/train and the like do not exist yet" in done.output


def test_a_run_that_was_begun_says_where_it_goes_on(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-20").mkdir(parents=True)
    done = CliRunner().invoke(app, ["train", str(_recipe(tmp_path, prepared)), "--dry-run"])
    assert "which has checkpoints: the run goes on from step-20" in done.output


def test_rows_are_indented_below_their_label() -> None:
    assert show([("label", "one two three " * 5)], width=40)[1].startswith(" " * 11 + "one")
