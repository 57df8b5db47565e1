"""Exports and published folders are scored as the runs they come from, and the scores name their weights."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.convert.any_model import load_model
from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.fill_mask import predict_masks
from megadeberta.convert.formats.family import FileFormat, ModelKind
from megadeberta.errors import CheckpointError
from megadeberta.evaluate.run import evaluate
from tests.models import tiny_rtd
from tests.unit.convert.published import write_published_folder
from tests.unit.convert.small_models import V1, small_config, small_model, write_checkpoint

TEXT = "The state of the Union is strong. The state of the Union is [MASK].\n"
RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _json(*arguments: object) -> dict:
    done = RUNNER.invoke(app, ["evaluate", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("file_format", FileFormat)
@pytest.mark.parametrize("changes", [{}, V1])
def test_an_export_scores_as_its_run(
    changes: dict, file_format: FileFormat, tmp_path: Path, spm: Path, text: Path
) -> None:
    config = small_config(**changes)
    step = write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=5)
    export_checkpoint(tmp_path / "run", tmp_path / "out", file_format=file_format)
    expected = evaluate(tmp_path / "run", text=text)
    found = _json(tmp_path / "out", "--text", text)
    assert found["scores"] == pytest.approx(expected, rel=1e-6)
    assert found["weights"] == str(tmp_path / "out") and found["step"] is None
    of_run = _json(tmp_path / "run", "--text", text)
    assert of_run["weights"] == str(step) and of_run["step"] == 5


def test_the_table_names_the_checkpoint_and_shows_perplexities_short(tmp_path: Path, spm: Path, text: Path) -> None:
    config = small_config()
    step = write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=1200)
    shown = RUNNER.invoke(app, ["evaluate", str(tmp_path / "run"), "--text", str(text)], catch_exceptions=False).output
    assert f"{step}, step 1,200" in shown
    row = next(line for line in shown.splitlines() if "pseudo perplexity " in line)
    assert len(row.split("│")[2].strip().split(".")[1]) == 2


def test_a_published_folder_is_both_parts_to_evaluate_and_the_generator_to_fill_mask(
    tmp_path: Path, spm: Path, text: Path
) -> None:
    config, objective = small_config(), tiny_rtd()
    model = small_model(config, objective=objective)
    section = objective.model_dump(mode="json")
    write_checkpoint(tmp_path / "run", model, config, spm, step=5, objective=section)
    folder = write_published_folder(tmp_path / "run", tmp_path / "published", tmp_path / "scratch")
    assert load_model(folder).parts == ("generator", "discriminator")
    expected = evaluate(tmp_path / "run", text=text)
    assert evaluate(folder, text=text) == pytest.approx(expected, rel=1e-6)
    generator = folder / "pytorch_model.generator.bin"
    assert evaluate(generator, text=text) == pytest.approx(expected, rel=1e-6)
    masks = [
        [(guess.piece, pytest.approx(guess.probability, rel=1e-4)) for guess in predict_masks(path, "A [MASK].")[0]]
        for path in (tmp_path / "run", folder, generator)
    ]
    assert masks[0] == masks[1] == masks[2]


def test_an_encoder_alone_predicts_nothing(tmp_path: Path, spm: Path, text: Path) -> None:
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=5)
    export_checkpoint(tmp_path / "run", tmp_path / "out", kind=ModelKind.BACKBONE)
    with pytest.raises(CheckpointError, match=r"has no .*nothing can be predicted; export with --model mlm"):
        evaluate(tmp_path / "out", text=text)
