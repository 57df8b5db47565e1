"""Reading and choosing: SQuAD 1.1 and 2.0 (JSON), RACE (a folder of JSON files) and SWAG (CSV), as published."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.finetune.metrics import accuracy_by_group
from megadeberta.finetune.rows import ChoiceRow, Prediction, Row, SpanRow, Splits
from megadeberta.finetune.squad_metric import squad_metrics
from megadeberta.finetune.tables import need_columns, read_delimited, read_json
from megadeberta.finetune.task import Columns, Defaults, Task

_LETTERS = "ABCD"


def _read_squad(version: str, folder: Path, columns: Columns) -> Splits:
    files = {split: folder / f"{split}-{version}.json" for split in ("train", "dev")}
    for path in files.values():
        if not path.is_file():
            raise DataError(f"{path}: is missing; SQuAD is published as {' and '.join(p.name for p in files.values())}")
    return Splits(_squad_rows(files["train"]), {"dev": _squad_rows(files["dev"])})


def _squad_rows(path: Path) -> list[SpanRow]:
    rows: list[SpanRow] = []
    try:
        for article in read_json(path)["data"]:
            for paragraph in article["paragraphs"]:
                rows.extend(_squad_row(question, paragraph["context"]) for question in paragraph["qas"])
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: is not in SQuAD's format ({type(error).__name__}: {error})") from None
    if not rows:
        raise DataError(f"{path}: holds no questions")
    for row in rows:
        if row.start is not None and row.context[row.start :][: len(row.answers[0])] != row.answers[0]:
            raise DataError(f"{path}: the answer of {row.uid} is not where its answer_start says")
    return rows


def _squad_row(question: dict[str, Any], context: str) -> SpanRow:
    answers = [] if question.get("is_impossible") else question["answers"]
    start = answers[0]["answer_start"] if answers else None
    return SpanRow(question["id"], question["question"], context, tuple(a["text"] for a in answers), start)


def _squad_file(name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[str, str]:
    """The answers by the id of the question, as the official script reads them."""
    answers = {row.uid: prediction.value for row, prediction in zip(rows, predictions, strict=True)}
    return f"{name}_predictions.json", json.dumps(answers, ensure_ascii=False, indent=1) + "\n"


def _read_race(folder: Path, columns: Columns) -> Splits:
    train, dev = _race_rows(folder / "train"), _race_rows(folder / "dev")
    return Splits(train, {"dev": dev}, {"test": _race_rows(folder / "test")} if (folder / "test").is_dir() else {})


def _race_rows(folder: Path) -> list[ChoiceRow]:
    rows = []
    for path in sorted(folder.glob("*/*.txt")):
        content = read_json(path)
        try:
            for number, (question, options, answer) in enumerate(
                zip(content["questions"], content["options"], content["answers"], strict=True)
            ):
                choices = tuple((content["article"], _fill_in(question, option)) for option in options)
                rows.append(ChoiceRow(f"{content['id']} {number}", choices, _LETTERS.index(answer), path.parent.name))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is not in RACE's format ({type(error).__name__}: {error})") from None
    if not rows:
        raise DataError(f"{folder}: holds no high/*.txt or middle/*.txt, as RACE is published")
    return rows


def _fill_in(question: str, option: str) -> str:
    """The option in the gap of a question that has one, else behind it."""
    return question.replace("_", option) if "_" in question else f"{question} {option}"


def _read_swag(folder: Path, columns: Columns) -> Splits:
    test = folder / "test.csv"
    return Splits(
        _swag_rows(folder / "train.csv"),
        {"dev": _swag_rows(folder / "val.csv")},
        {"test": _swag_rows(test)} if test.is_file() else {},
    )


def _swag_rows(path: Path) -> list[ChoiceRow]:
    table = read_delimited(path)
    endings = [f"ending{number}" for number in range(4)]
    need_columns(table, ["sent1", "sent2", *endings], path, hint="; SWAG is read as published in its repository")
    rows = []
    for number, record in enumerate(table):
        choices = tuple((record["sent1"], f"{record['sent2']} {record[ending]}") for ending in endings)
        rows.append(ChoiceRow(str(number), choices, int(record["label"]) if record.get("label") else None))
    return rows


def _task(
    name: str, summary: str, kind: str, read: Callable[[Path, Columns], Splits], defaults: Defaults, **more: Any
) -> Task:
    return Task(name=name, summary=summary, kind=kind, read=read, defaults=defaults, **more)


_SPANS: dict[str, Any] = {"metrics": squad_metrics, "main": "f1", "submission": _squad_file}
_CHOICES: dict[str, Any] = {"metrics": accuracy_by_group, "main": "accuracy"}
READING = (
    _task(
        "squad",
        "SQuAD 1.1: which words of the passage answer the question?",
        "spans",
        partial(_read_squad, "v1.1"),
        Defaults(384, epochs=3, warmup=500, dropout=0.0),
        **_SPANS,
    ),
    _task(
        "squad2",
        "SQuAD 2.0: the same, and some questions have no answer",
        "spans",
        partial(_read_squad, "v2.0"),
        Defaults(384, epochs=3, warmup=500, dropout=0.0),
        **_SPANS,
    ),
    _task(
        "race",
        "RACE: examinations, one of four answers",
        "multiple-choice",
        _read_race,
        Defaults(320, dropout=0.2),
        **_CHOICES,
    ),
    _task(
        "swag",
        "SWAG: which of four endings follows?",
        "multiple-choice",
        _read_swag,
        Defaults(128, epochs=3, dropout=0.1),
        **_CHOICES,
    ),
)
