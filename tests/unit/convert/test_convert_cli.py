"""The commands print what they did as tables, and load torch only when they run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.convert.cli import app, fill_mask
from megadeberta.errors import CheckpointError
from tests.unit.convert.small_models import small_config, small_model, weights_of, write_checkpoint

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def run(tmp_path: Path, spm: Path) -> Path:
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=5)
    return tmp_path / "run"


def _invoke(*arguments: object) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_export_check_and_import_report_what_they_did(run: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    shown = _invoke("export", run, out)
    assert "is written and checked" in shown and "bit for bit those of" in shown
    assert "DebertaV2ForMaskedLMWithMaskDecoder logits" in shown and "nothing missing, nothing unexpected" in shown
    assert "ids of spm.model" in _invoke("check", out)
    assert re.search(r"taken +│ 60 +│ from the file", _invoke("import", out, back))
    backbone = tmp_path / "backbone"
    _invoke("export", back, backbone, "--model", "backbone")
    shown = _invoke("import", backbone, tmp_path / "new", "--allow-new", "--no-mask-decoder")
    assert re.search(r"DRAWN +│ 5 ", shown) and "mlm_head.decoder.bias to " in shown and "untrained" in shown
    assert "import_report.json" in shown and shown.count("mlm_head") == 2


def test_both_parts_go_out_to_microsofts_files_and_back(tmp_path: Path, spm: Path) -> None:
    objective = ObjectiveConfig(name="rtd", rtd={"generator_layers": 2})
    config = small_config(num_hidden_layers=4)
    model = small_model(config, objective=objective)
    write_checkpoint(tmp_path / "run", model, config, spm, step=5, objective=objective.model_dump(mode="json"))
    folders = {"discriminator": tmp_path / "discriminator", "mlm": tmp_path / "generator"}
    for kind, folder in folders.items():
        shown = _invoke("export", tmp_path / "run", folder, "--model", kind, "--format", "microsoft")
        assert "equal to ours within" in shown
        assert "DebertaV2Model states" in _invoke("check", folder)
    shown = _invoke("import", folders["discriminator"], tmp_path / "back", "--generator", folders["mlm"])
    # The sum is on disk too, and is the only tensor that is not needed.
    assert re.search(rf"taken +│ {len(weights_of(model))} ", shown) and re.search(r"dropped +│ 1 ", shown)
    shown = _invoke("import", folders["discriminator"], tmp_path / "new", "--new-generator", "--sharing", "nes")
    assert re.search(r"DRAWN +│ \d\d ", shown) and "generator." in shown
    assert len(shown.splitlines()) < 16, "a summary, not a row for each tensor"


def test_wrong_arguments_are_usage_errors(run: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["export", str(run), str(tmp_path / "out"), "--model", "tiny"])
    assert result.exit_code == 2
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        _invoke("check", tmp_path)


def test_fill_mask_shows_the_text_with_each_guess(run: Path) -> None:
    single = typer.Typer()
    single.command()(fill_mask)
    result = RUNNER.invoke(
        single, [str(run), "A [bold]b[/bold] [MASK] of [MASK].", "--top-k", "2"], catch_exceptions=False
    )
    lines = [line for line in result.output.splitlines() if "%" in line]
    assert len(lines) == 4
    assert all("A [bold]b[/bold] " in line for line in lines), "the text is shown as it is, not as markup"
    assert all(line.count("[MASK]") == 1 for line in lines)


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys, megadeberta.convert.cli; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
