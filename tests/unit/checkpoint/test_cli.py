"""`megadeberta checkpoint list|verify`."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.checkpoint.cli import app
from megadeberta.errors import CheckpointError
from tests.unit.checkpoint.rank_threads import save


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    save(tmp_path / "checkpoints", 100, 200)
    return tmp_path


def test_list_shows_size_layout_and_the_latest(output_dir: Path) -> None:
    result = CliRunner().invoke(app, ["list", str(output_dir)], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    newest = next(line for line in result.output.splitlines() if "step-200" in line)
    files = [path for path in (output_dir / "checkpoints/step-200").iterdir() if path.name != "manifest.json"]
    size = f"{sum(path.stat().st_size for path in files) / 1000:.1f} kB"
    assert newest.split()[:8] == ["step-200", "200", *size.split(), "5", "2", "1", "fp32"]
    assert "latest" in newest
    assert "step-100" in result.output


def test_list_goes_on_past_a_damaged_manifest_and_pointer(output_dir: Path) -> None:
    (output_dir / "checkpoints/step-100/manifest.json").write_text("{")
    (output_dir / "checkpoints/latest").write_text("")
    result = CliRunner().invoke(app, ["list", str(output_dir)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "manifest damaged" in next(line for line in result.output.splitlines() if "step-100" in line)
    assert "latest: is empty" in result.output


def test_verify_says_sound_for_each(output_dir: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(output_dir)])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("step-200: sound, 5 files, ")
    assert lines[1].startswith("step-100: sound, 5 files, ")
    assert lines[2] == "latest: step-200"


def test_verify_fails_for_damage_and_names_the_file(output_dir: Path) -> None:
    with (output_dir / "checkpoints/step-100/own-1.txt").open("r+b") as file:
        file.write(b"X")
    result = CliRunner().invoke(app, ["verify", str(output_dir)])
    assert isinstance(result.exception, CheckpointError)
    assert "1 of 3 checks failed, the first: " in str(result.exception)
    assert "step-100/own-1.txt: sha256 " in str(result.exception)
    assert "step-100: NOT SOUND: " in result.output
    assert "step-200: sound" in result.output


def test_verify_of_one_checkpoint_leaves_the_others_alone(output_dir: Path) -> None:
    (output_dir / "checkpoints/step-100/own-1.txt").unlink()
    result = CliRunner().invoke(app, ["verify", str(output_dir), "--name", "step-200"])
    assert result.exit_code == 0
    assert "step-100" not in result.output


def test_verify_reports_a_missing_pointer(output_dir: Path) -> None:
    (output_dir / "checkpoints/latest").unlink()
    result = CliRunner().invoke(app, ["verify", str(output_dir)])
    assert isinstance(result.exception, CheckpointError)
    assert "latest: is missing" in str(result.exception)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(app, [command, str(tmp_path)])
    assert isinstance(result.exception, CheckpointError)
    assert "checkpoints: holds no checkpoints; give the training.output_dir of a run" in str(result.exception)


def test_the_package_needs_no_torch() -> None:
    program = "import sys, megadeberta.checkpoint.cli; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
