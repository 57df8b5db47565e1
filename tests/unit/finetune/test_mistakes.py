"""What does not fit is said before anything is trained, in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megadeberta.cli import command_line
from megadeberta.errors import CheckpointError, ConfigError, DataError
from megadeberta.finetune import packages
from megadeberta.finetune.settings import Point, grid, within_run
from megadeberta.finetune.source import open_start
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint
from tests.unit.finetune.small_sets import sst2, write_csv, write_jsonl


@pytest.fixture
def invoke(tiny_export: Path, tmp_path: Path) -> Any:
    sst2(tmp_path / "SST-2")

    def run(task: str = "sst-2", *more: str, data: Path = tmp_path, model: Path = tiny_export) -> None:
        arguments = ["finetune", task, "--data", str(data), "--model", str(model), "--output", str(tmp_path / "out")]
        CliRunner().invoke(command_line(["finetune", "evaluate"]), [*arguments, *more], catch_exceptions=False)

    return run


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--length", "5"), ConfigError, "--length 5 is not between 8 and any number"),
        (("--grid", "lr,beta"), ConfigError, "'beta' is none of lr, batch, dropout, warmup"),
        (("--column", "text=x"), ConfigError, "--column is for tables of your own; sst-2 is read as published"),
        (("--batch-size", "9", "--micro-batch", "2"), ConfigError, "--batch-size 9 is no multiple of 1 ranks x 2"),
        (("--attention", "fast"), ConfigError, "attention backend 'fast' does not exist"),
    ],
)
def test_settings_that_do_not_fit(more: tuple[str, ...], error: type[Exception], message: str, invoke: Any) -> None:
    with pytest.raises(error, match=message):
        invoke("sst-2", *more)


def test_command_without_data_or_with_a_wrong_path(invoke: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        invoke(data=tmp_path / "none")
    with pytest.raises(ConfigError, match="finetune sst-2: give --data"):
        CliRunner().invoke(command_line(["finetune"]), ["finetune", "sst-2"], catch_exceptions=False)


def test_output_that_is_in_use(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        invoke()


def test_model_without_tokenizer_and_of_another_family(tiny_export: Path, tmp_path: Path, invoke: Any) -> None:
    copied = shutil.copytree(tiny_export, tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    for name in ("tokenizer.json", "spm.model"):
        (copied / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        invoke(model=copied)
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="model_type is 'bert', which is no DeBERTa"):
        invoke(model=copied)
    with pytest.raises(CheckpointError, match="no such folder or file"):
        invoke(model=tmp_path / "nothing")


def test_encoder_with_missing_weights(tiny_export: Path, tmp_path: Path, invoke: Any) -> None:
    copied = shutil.copytree(tiny_export, tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match="misses 16 tensors of the encoder, first deberta"):
        invoke(model=copied)


@pytest.mark.parametrize(
    ("task", "rows", "more", "message"),
    [
        (
            "classification",
            [{"text": "a"}] * 3,
            (),
            "has no column 'label', but 'text'; --column label=NAME says which",
        ),
        ("classification", [{"text": "a", "label": None}] * 3, (), "row 1 has no 'label'"),
        ("classification", [{"text": "a", "label": 1}] * 3, ("--column", "x=label"), "the task has no 'x'"),
        ("regression", [{"text": "a", "label": "good"}] * 3, (), "row 1 cannot be read .*good"),
        ("tokens", [{"tokens": ["a", "b"], "tags": ["O"]}] * 3, (), "row 1 cannot be read .*2 tokens and 1 tags"),
        ("multiple-choice", [{"context": "a", "choices": ["b", "c"], "label": 2}] * 3, (), "labels count from 0"),
        ("spans", [{"context": "a", "question": "b", "answer": "z"}] * 3, (), "'z' is not at character"),
        ("classification", [{"text": "a", "label": "x"}], (), "has 1 training row and no development set"),
    ],
)
def test_own_tables_that_do_not_fit(
    task: str, rows: list[Any], more: tuple[str, ...], message: str, invoke: Any, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "own" / "train.jsonl", rows)
    with pytest.raises(DataError, match=message):
        invoke(task, *more, data=path.parent)


def test_rows_with_different_numbers_of_choices(invoke: Any, tmp_path: Path) -> None:
    rows = [{"context": "a", "choices": ["b", "c", "d"][: 2 + n % 2], "label": 0} for n in range(20)]
    with pytest.raises(DataError, match="rows have 2 to 3 choices"):
        invoke("multiple-choice", data=write_jsonl(tmp_path / "own" / "train.jsonl", rows).parent)


def test_a_table_of_another_ending(invoke: Any, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "set.txt", ["a"], [("b",)])
    with pytest.raises(DataError, match=r"ends in none of \.csv, \.tsv"):
        invoke("classification", data=path)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(ConfigError, match=r"finetune needs scikit-learn: pip install 'megadeberta\[finetune\]'"):
        packages.check_packages()


def test_dropout_of_a_head_that_has_none(invoke: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["B-X"]}]
    data = write_jsonl(tmp_path / "own" / "train.jsonl", rows).parent
    with pytest.raises(ConfigError, match="the head of tokens has no dropout of its own"):
        invoke("tokens", "--dropout", "0.1", data=data)
    with pytest.raises(ConfigError, match="--grid dropout"):
        invoke("tokens", "--grid", "all", data=data)


def test_the_grid_is_table_9() -> None:
    start = Point(lr=1.0, batch_size=8, warmup=0, dropout=0.5)
    large = grid(start, ("lr", "batch"), hidden_size=1024)
    assert [(point.lr, point.batch_size) for point in large[:4]] == [(5e-6, 16), (5e-6, 32), (5e-6, 48), (5e-6, 64)]
    assert len(large) == 16 and {point.dropout for point in large} == {0.5}
    assert {point.dropout for point in grid(start, ("dropout",), hidden_size=1536)} == {0.0, 0.15, 0.3}
    assert grid(start, (), hidden_size=768) == [start]


def test_warm_up_is_a_tenth_where_the_run_is_short() -> None:
    points = [Point(1.0, 10, warmup, None) for warmup in (50, 100, 500)]
    found = within_run(points, sequences=100, epochs=15)  # 150 steps
    assert [point.warmup for point in found] == [50, 15]


def test_a_checkpoint_of_a_run_is_exported_first(spm: Path, tmp_path: Path) -> None:
    config = small_config()
    write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=3)
    with open_start(tmp_path / "run") as start:
        assert start.hidden_size == 24 and start.longest() is None
        assert (start.folder / "tokenizer.json").is_file()
        folder = start.folder
    assert not folder.exists()
