"""One's own labelled data: tables of CSV, TSV, JSON lines, JSON or Parquet, one task for each kind.

A folder holds ``train``, ``dev`` (or ``valid``, ``validation``) and perhaps ``test``; a single file is the training
set. Without a development set every tenth row, drawn once and always the same, is kept for it.
"""

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.finetune.chunk_metric import chunk_metrics
from megadeberta.finetune.metrics import Scorer, accuracy_by_group, pick, regression_metrics
from megadeberta.finetune.rows import ChoiceRow, Row, SpanRow, Splits, TextRow, TokenRow
from megadeberta.finetune.squad_metric import squad_metrics
from megadeberta.finetune.tables import ENDINGS, Record, find_split, need_columns, read_table
from megadeberta.finetune.task import Columns, Defaults, Task

_STEMS = {"train": ("train",), "dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
_ONE_IN = 10
_DRAW = 1234
_HINT = "; --column {name}=NAME says which column it is"
_ToRow = Callable[[Record, str, bool], Row]
"""From the record, its id, and whether it must have a label."""


def _read(to_row: _ToRow, needed: Sequence[str], answer: str, source: Path, columns: Columns) -> Splits:
    """
    Args:
        needed: columns without which no row can be read.
        answer: the column with what is to be learned, which a test set may lack.
    """
    if source.is_file():
        files: dict[str, Path | None] = {"train": source, "dev": None, "test": None}
    else:
        files = {split: find_split(source, stems) for split, stems in _STEMS.items()}
    if files["train"] is None:
        raise DataError(f"{source}: holds no train file with one of the endings {', '.join(ENDINGS)}")
    tables = {split: _table(path, needed, answer, columns) for split, path in files.items() if path is not None}
    rows = {split: _rows(table, to_row, answer, files[split]) for split, table in tables.items()}
    if "dev" not in rows:
        rows["train"], rows["dev"] = _divide(rows["train"], source)
    return Splits(rows["train"], {"dev": rows["dev"]}, {"test": rows["test"]} if "test" in rows else {})


def _table(path: Path, needed: Sequence[str], answer: str, columns: Columns) -> list[Record]:
    """The records under the names that the task uses."""
    renamed = {theirs: ours for ours, theirs in columns.items()}
    table = read_table(path)
    for theirs, ours in renamed.items():
        need_columns(table, [theirs], path)
        if ours not in needed and ours not in (answer, "pair", "id", "group", "question", "start"):
            raise DataError(f"--column {ours}={theirs}: the task has no {ours!r}; it has {', '.join(needed)}, {answer}")
    table = [{renamed.get(name, name): value for name, value in record.items()} for record in table]
    if answer == "answer":  # of a span: none is an answer, too
        table = [record | {answer: ""} if answer in record and record[answer] is None else record for record in table]
    is_test = path.stem in _STEMS["test"]
    for name in (*needed, *(() if is_test else (answer,))):
        need_columns(table, [name], path, hint=_HINT.format(name=name))
    return table


def _rows(table: Sequence[Record], to_row: _ToRow, answer: str, path: Path | None) -> list[Row]:
    has_answer = all(record.get(answer) is not None for record in table)
    found = []
    for number, record in enumerate(table, start=1):
        uid = str(record["id"]) if record.get("id") is not None else str(number)
        try:
            found.append(to_row(record, uid, has_answer))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{path}: row {number} cannot be read ({type(error).__name__}: {error})") from None
    return found


def _divide(rows: list[Row], source: Path) -> tuple[list[Row], list[Row]]:
    if len(rows) < 2:
        raise DataError(f"{source}: has {len(rows)} training row and no development set; give more rows")
    chosen = set(random.Random(_DRAW).sample(range(len(rows)), max(1, len(rows) // _ONE_IN)))
    kept = [row for number, row in enumerate(rows) if number not in chosen]
    return kept, [row for number, row in enumerate(rows) if number in chosen]


def _text(record: Record, uid: str, labelled: bool) -> Row:
    pair = record.get("pair")
    label = _name(record["label"]) if labelled else None
    return TextRow(uid, str(record["text"]), None if pair is None else str(pair), label, str(record.get("group") or ""))


def _name(label: Any) -> str:
    """Of a class: 1.0 of a Parquet column with gaps, 1 of JSON and "1" of CSV are the same."""
    return (
        str(int(label)) if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()) else str(label)
    )


def _number(record: Record, uid: str, labelled: bool) -> Row:
    pair = record.get("pair")
    label = float(record["label"]) if labelled else None
    return TextRow(uid, str(record["text"]), None if pair is None else str(pair), label)


def _tokens(record: Record, uid: str, labelled: bool) -> Row:
    words = _list(record["tokens"])
    tags = _list(record["tags"]) if labelled else None
    if not words or (tags is not None and len(tags) != len(words)):
        raise ValueError(f"{len(words)} tokens and {len(tags or ())} tags")
    return TokenRow(uid, words, tags)


def _choices(record: Record, uid: str, labelled: bool) -> Row:
    question, options = record.get("question"), _list(record["choices"])
    label = int(record["label"]) if labelled else None
    if len(options) < 2 or (label is not None and not 0 <= label < len(options)):
        raise ValueError(f"{len(options)} choices and label {label}; labels count from 0")
    choices = tuple((str(record["context"]), f"{question} {option}" if question else option) for option in options)
    return ChoiceRow(uid, choices, label, str(record.get("group") or ""))


def _spans(record: Record, uid: str, labelled: bool) -> Row:
    context, answer = str(record["context"]), record.get("answer")
    answers = _list(answer) if isinstance(answer, list | tuple) else (str(answer),) if answer else ()
    start: int | None = None
    if answers:
        given = record.get("start")
        start = int(given) if given not in (None, "") else context.find(answers[0])
        if start < 0 or context[start:][: len(answers[0])] != answers[0]:
            raise ValueError(f"the answer {answers[0][:40]!r} is not at character {start} of its context")
    return SpanRow(uid, str(record["question"]), context, answers, start, labelled)


def _list(value: Any) -> tuple[str, ...]:
    """A list, a JSON list in the field of a CSV, or words with blanks between."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split()
    return tuple(str(item) for item in value)


def _task(
    name: str,
    summary: str,
    read: tuple[_ToRow, Sequence[str], str],
    metrics: Scorer,
    main: str,
    *,
    defaults: Defaults = Defaults(256),
    kind: str | None = None,
) -> Task:
    return Task(
        name=name,
        summary=summary,
        kind=kind or name,
        read=partial(_read, *read),
        metrics=metrics,
        main=main,
        defaults=defaults,
        takes_columns=True,
    )


_labels = pick("accuracy", "macro_f1")
OWN = (
    _task("classification", "your table: text (and pair), label", (_text, ("text",), "label"), _labels, "accuracy"),
    _task(
        "pairs",
        "your table: text, pair, label",
        (_text, ("text", "pair"), "label"),
        _labels,
        "accuracy",
        kind="classification",
    ),
    _task(
        "regression",
        "your table: text (and pair), a number as label",
        (_number, ("text",), "label"),
        regression_metrics,
        "spearman",
    ),
    _task(
        "tokens",
        "your table: tokens and tags, as lists",
        (_tokens, ("tokens",), "tags"),
        chunk_metrics,
        "f1",
        defaults=Defaults(512, dropout=0.0),
    ),
    _task(
        "multiple-choice",
        "your table: context, question, choices (a list), label from 0",
        (_choices, ("context", "choices"), "label"),
        accuracy_by_group,
        "accuracy",
    ),
    _task(
        "spans",
        "your table: question, context, answer (empty: none), start",
        (_spans, ("question", "context"), "answer"),
        squad_metrics,
        "f1",
        defaults=Defaults(384, epochs=3, dropout=0.0),
    ),
)
