"""The nine tasks of GLUE (Wang et al. 2018), from the TSV files of its download, and files for its leaderboard.

Defaults of length, epochs, batch and warm-up are those of microsoft/DeBERTa ``experiments/glue`` for the base model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.finetune.metrics import (
    Scorer,
    mean_accuracy_f1,
    mean_correlation,
    pick,
)
from megadeberta.finetune.rows import Prediction, Row, Splits, TextRow
from megadeberta.finetune.tables import need_columns, read_delimited
from megadeberta.finetune.task import Columns, Defaults, Task

_BINARY = ("0", "1")
_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")


@dataclass(frozen=True)
class _Files:
    """What the TSV files of a task are called, and their columns."""

    folder: str
    """In the folder that the download script makes."""
    text: str = "sentence"
    pair: str | None = None
    label: str = "label"
    number: bool = False
    dev: Mapping[str, str] | None = None
    """Name of a development set -> its file; None: ``dev.tsv``."""
    test: Mapping[str, str] | None = None
    header: tuple[str, ...] | None = None
    """Columns of training and development files that have no header."""
    group: str | None = None


def _read(files: _Files, folder: Path, columns: Columns) -> Splits:
    place = folder if (folder / "train.tsv").is_file() else folder / files.folder
    if not (place / "train.tsv").is_file():
        raise DataError(f"{folder}: holds neither train.tsv nor {files.folder}/train.tsv, as GLUE's download has them")
    dev, test = files.dev or {"dev": "dev.tsv"}, files.test or {"test": "test.tsv"}
    return Splits(
        _rows(place / "train.tsv", files, labelled=True),
        {name: _rows(place / file, files, labelled=True) for name, file in dev.items()},
        {name: _rows(place / file, files, labelled=False) for name, file in test.items() if (place / file).is_file()},
    )


def _rows(path: Path, files: _Files, *, labelled: bool) -> list[TextRow]:
    table = read_delimited(path, quoted=False, header=files.header if labelled else None)
    if not table:
        raise DataError(f"{path}: holds no rows")
    wanted = [files.text, *([files.pair] if files.pair else []), *([files.label] if labelled else [])]
    need_columns(table, wanted, path, hint="; is it the file of another task?")
    rows = []
    for number, record in enumerate(table):
        label = _label(record[files.label], files, path, number) if labelled else None
        if label == "-":  # MNLI: the annotators did not agree
            continue
        pair = record[files.pair] if files.pair else None
        group = record.get(files.group, "") if files.group else ""
        rows.append(TextRow(str(record.get("index", number)), record[files.text], pair, label, group))
    return rows


def _label(text: str, files: _Files, path: Path, number: int) -> str | float:
    if not files.number:
        return text
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: row {number + 1} has the score {text!r}, which is not a number") from None


def _submission(stem: str, name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[str, str]:
    """``index`` and ``prediction``, as gluebenchmark.com takes them."""
    lines = ["index\tprediction", *(f"{row.uid}\t{_shown(p.value)}" for row, p in zip(rows, predictions, strict=True))]
    suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(name, "")
    return f"{stem}{suffix}.tsv", "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{min(5.0, max(0.0, value)):.3f}" if isinstance(value, float) else str(value)


def _task(
    name: str,
    summary: str,
    files: _Files,
    *,
    labels: tuple[str, ...] | None,
    metrics: Scorer,
    main: str,
    defaults: Defaults,
) -> Task:
    return Task(
        name=name,
        summary=summary,
        kind="regression" if files.number else "classification",
        read=partial(_read, files),
        metrics=metrics,
        main=main,
        defaults=defaults,
        labels=labels,
        submission=partial(_submission, files.folder),
    )


_MNLI = _Files(
    "MNLI",
    "sentence1",
    "sentence2",
    label="gold_label",
    dev={"dev_matched": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"},
    test={"test_matched": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"},
    group="genre",
)
GLUE = (
    _task(
        "cola",
        "GLUE: is the sentence grammatical?",
        _Files("CoLA", header=("source", "label", "mark", "sentence")),
        labels=_BINARY,
        metrics=pick("matthews", "accuracy"),
        main="matthews",
        defaults=Defaults(64),
    ),
    _task(
        "sst-2",
        "GLUE: is the review friendly?",
        _Files("SST-2"),
        labels=_BINARY,
        metrics=pick("accuracy"),
        main="accuracy",
        defaults=Defaults(128, warmup=500),
    ),
    _task(
        "mrpc",
        "GLUE: do both sentences say the same?",
        _Files("MRPC", "#1 String", "#2 String", label="Quality"),
        labels=_BINARY,
        metrics=mean_accuracy_f1,
        main="mean",
        defaults=Defaults(128, warmup=50),
    ),
    _task(
        "qqp",
        "GLUE: do both questions ask the same?",
        _Files("QQP", "question1", "question2", label="is_duplicate"),
        labels=_BINARY,
        metrics=mean_accuracy_f1,
        main="mean",
        defaults=Defaults(320, epochs=8, batch_size=64, warmup=500),
    ),
    _task(
        "sts-b",
        "GLUE: how similar are both sentences, 0 to 5?",
        _Files("STS-B", "sentence1", "sentence2", label="score", number=True),
        labels=None,
        metrics=mean_correlation,
        main="mean",
        defaults=Defaults(128),
    ),
    _task(
        "mnli",
        "GLUE: does the second sentence follow from the first?",
        _MNLI,
        labels=_NLI,
        metrics=pick("accuracy"),
        main="accuracy",
        defaults=Defaults(256, epochs=3, batch_size=64, warmup=1000, dropout=0.1),
    ),
    _task(
        "qnli",
        "GLUE: does the sentence answer the question?",
        _Files("QNLI", "question", "sentence"),
        labels=_RTE,
        metrics=pick("accuracy"),
        main="accuracy",
        defaults=Defaults(512, epochs=4, warmup=500),
    ),
    _task(
        "rte",
        "GLUE: does the second text follow from the first?",
        _Files("RTE", "sentence1", "sentence2"),
        labels=_RTE,
        metrics=pick("accuracy"),
        main="accuracy",
        defaults=Defaults(320, dropout=0.2),
    ),
    _task(
        "wnli",
        "GLUE: does the sentence with the pronoun filled in follow?",
        _Files("WNLI", "sentence1", "sentence2"),
        labels=_BINARY,
        metrics=pick("accuracy"),
        main="accuracy",
        defaults=Defaults(320, dropout=0.2),
    ),
)
