"""The eight tasks of SuperGLUE (Wang et al. 2019), from the JSON lines of its download, and files for its leaderboard.

How a row becomes texts for an encoder: MultiRC and ReCoRD are one row per answer and candidate, as in jiant; the words
that WiC and WSC speak of stand before the sentence and between marks. Defaults are those of microsoft/DeBERTa's base
model where its scripts have the task (RTE, COPA, ReCoRD), else RTE's.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.finetune.metrics import Scorer, accuracy_by_group, mean_accuracy_macro_f1, pick
from megadeberta.finetune.rows import ChoiceRow, Prediction, Row, Splits, TextRow
from megadeberta.finetune.squad_metric import likeliest, multirc_metrics, record_metrics
from megadeberta.finetune.tables import Record, read_json_lines
from megadeberta.finetune.task import Columns, Defaults, Task

_BOOLEAN = ("false", "true")
_BINARY = ("0", "1")
_Rows = Callable[[Record], Iterable[Row]]


def _read(name: str, to_rows: _Rows, folder: Path, columns: Columns) -> Splits:
    place = folder if (folder / "train.jsonl").is_file() else folder / name
    if not (place / "train.jsonl").is_file():
        raise DataError(f"{folder}: holds neither train.jsonl nor {name}/train.jsonl, as SuperGLUE's download has them")
    test = place / "test.jsonl"
    return Splits(
        _rows(place / "train.jsonl", to_rows),
        {"dev": _rows(place / "val.jsonl", to_rows)},
        {"test": _rows(test, to_rows)} if test.is_file() else {},
    )


def _rows(path: Path, to_rows: _Rows) -> list[Row]:
    found: list[Row] = []
    for number, record in enumerate(read_json_lines(path), start=1):
        try:
            found.extend(to_rows(record))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: row {number} is not one of this task ({type(error).__name__}: {error}); it has "
                f"{', '.join(map(repr, record))}"
            ) from None
    if not found:
        raise DataError(f"{path}: holds no rows")
    return found


def _boolean(record: Record) -> str | None:
    return str(record["label"]).lower() if "label" in record else None


def _boolq(record: Record) -> Iterable[Row]:
    yield TextRow(str(record["idx"]), record["passage"], record["question"], _boolean(record))


def _cb(record: Record) -> Iterable[Row]:
    yield TextRow(str(record["idx"]), record["premise"], record["hypothesis"], record.get("label"))


def _copa(record: Record) -> Iterable[Row]:
    asked = {"cause": "What was the cause?", "effect": "What happened as a result?"}[record["question"]]
    first = f"{record['premise']} {asked}"
    choices = tuple((first, record[name]) for name in ("choice1", "choice2"))
    yield ChoiceRow(str(record["idx"]), choices, record.get("label"))


def _multirc(record: Record) -> Iterable[Row]:
    passage = record["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            label = str(answer["label"]) if "label" in answer else None
            uid = f"{record['idx']} {question['idx']} {answer['idx']}"
            pair = f"{question['question']} {answer['text']}"
            yield TextRow(uid, passage["text"], pair, label, group=f"{record['idx']} {question['idx']}")


def _record(record: Record) -> Iterable[Row]:
    passage = record["passage"]["text"]
    names = dict.fromkeys(passage[entity["start"] : entity["end"] + 1] for entity in record["passage"]["entities"])
    text = passage.replace("\n@highlight\n", " ")
    for query in record["qas"]:
        labelled = "answers" in query
        answers = tuple(answer["text"] for answer in query.get("answers", ()))
        for name in names:
            label = _BINARY[name in answers] if labelled else None
            pair = query["query"].replace("@placeholder", name)
            yield TextRow(f"{query['idx']} {name}", text, pair, label, str(query["idx"]), name, answers)


def _rte(record: Record) -> Iterable[Row]:
    yield TextRow(str(record["idx"]), record["premise"], record["hypothesis"], record.get("label"))


def _wic(record: Record) -> Iterable[Row]:
    first = f"{record['word']}: {record['sentence1']}"
    yield TextRow(str(record["idx"]), first, record["sentence2"], _boolean(record))


def _wsc(record: Record) -> Iterable[Row]:
    words, target = record["text"].split(" "), record["target"]
    place = target["span2_index"]
    words[place] = f"* {words[place]} *"
    yield TextRow(str(record["idx"]), " ".join(words), target["span1_text"], _boolean(record))


def _lines(stem: str, name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[str, str]:
    """``idx`` and ``label`` of every row."""
    found = [{"idx": int(row.uid), "label": p.value} for row, p in zip(rows, predictions, strict=True)]
    return f"{stem}.jsonl", _json_lines(found)


def _multirc_lines(stem: str, name: str, rows: Sequence[Any], predictions: Sequence[Prediction]) -> tuple[str, str]:
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        passage, question, answer = map(int, row.uid.split())
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": int(str(prediction.value))})
    found = []
    for passage, questions in passages.items():
        listed = [{"idx": question, "answers": answers} for question, answers in questions.items()]
        found.append({"idx": passage, "passage": {"questions": listed}})
    return f"{stem}.jsonl", _json_lines(found)


def _record_lines(stem: str, name: str, rows: Sequence[Any], predictions: Sequence[Prediction]) -> tuple[str, str]:
    best = likeliest(rows, predictions)
    return f"{stem}.jsonl", _json_lines([{"idx": int(query), "label": row.candidate} for query, row in best.items()])


def _json_lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _task(
    name: str,
    folder: str,
    summary: str,
    rows: _Rows,
    metrics: Scorer,
    *,
    labels: tuple[str, ...] | None = _BOOLEAN,
    main: str = "accuracy",
    defaults: Defaults = Defaults(320, dropout=0.2),
    submission: Callable[..., tuple[str, str]] = _lines,
) -> Task:
    return Task(
        name=name,
        summary=f"SuperGLUE: {summary}",
        kind="classification" if labels else "multiple-choice",
        read=partial(_read, folder, rows),
        metrics=metrics,
        main=main,
        defaults=defaults,
        labels=labels,
        submission=partial(submission, folder),
    )


_accuracy = pick("accuracy")
_NLI = ("entailment", "contradiction", "neutral")
SUPERGLUE = (
    _task("boolq", "BoolQ", "yes or no, from a passage", _boolq, _accuracy),
    _task("cb", "CB", "commitment of the speaker", _cb, mean_accuracy_macro_f1, labels=_NLI, main="mean"),
    _task(
        "copa",
        "COPA",
        "which of two was cause or result?",
        _copa,
        accuracy_by_group,
        labels=None,
        defaults=Defaults(136, epochs=3, warmup=50, dropout=0.1),
    ),
    _task(
        "multirc",
        "MultiRC",
        "which answers are right?",
        _multirc,
        multirc_metrics,
        labels=_BINARY,
        main="mean",
        submission=_multirc_lines,
    ),
    _task(
        "record",
        "ReCoRD",
        "which name fills the gap?",
        _record,
        record_metrics,
        labels=_BINARY,
        main="f1",
        defaults=Defaults(512, epochs=3, batch_size=64, warmup=1000, dropout=0.3),
        submission=_record_lines,
    ),
    _task("superglue-rte", "RTE", "entailment", _rte, _accuracy, labels=("entailment", "not_entailment")),
    _task("wic", "WiC", "the same sense of a word?", _wic, _accuracy),
    _task("wsc", "WSC", "whom does the pronoun mean?", _wsc, _accuracy),
)
