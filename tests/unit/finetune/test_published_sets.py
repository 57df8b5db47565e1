"""Every published task is read from its files, scored, and written as its leaderboard takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from megadeberta.errors import ConfigError, DataError
from megadeberta.finetune.rows import ChoiceRow, Prediction, SpanRow, TextRow, TokenRow
from megadeberta.finetune.task import is_labelled, labels_of, score
from megadeberta.finetune.tasks.own import OWN
from megadeberta.finetune.tasks.table import TASKS, find_task
from tests.unit.finetune.published_sets import PUBLISHED
from tests.unit.finetune.small_sets import write_lines, write_tsv


def _read(name: str, root: Path) -> Any:
    folder, write = PUBLISHED[name]
    write(root / folder)
    return TASKS[name].read(root, {})


def _right(name: str, row: Any) -> Prediction:
    if isinstance(row, TokenRow):
        return Prediction(row.tags or ())
    if isinstance(row, SpanRow):
        return Prediction(row.answers[0] if row.answers else "")
    unlabelled = 0 if isinstance(row, ChoiceRow) else "1"
    value = unlabelled if row.label is None else row.label
    return Prediction(value, (0.0, float(value == "1")))


def test_every_task_of_the_table_is_here() -> None:
    assert set(PUBLISHED) == set(TASKS) - {task.name for task in OWN}


@pytest.mark.parametrize("name", PUBLISHED)
def test_right_predictions_of_a_published_set_score_one(name: str, tmp_path: Path) -> None:
    task, splits = TASKS[name], _read(name, tmp_path)
    assert is_labelled(splits.train)
    labels = labels_of(task, splits, tmp_path)
    assert (len(labels) >= 2) == (task.kind in ("classification", "tokens"))
    for rows in splits.dev.values():
        found = score(task, rows, [_right(name, row) for row in rows])
        assert next(iter(found)) == task.main
        assert found[task.main] == pytest.approx(1.0), found


@pytest.mark.parametrize("name", ["mnli", "mrpc", "boolq", "multirc", "record", "squad2", "conll2003"])
def test_predictions_become_the_file_of_the_leaderboard(name: str, tmp_path: Path) -> None:
    task, splits = TASKS[name], _read(name, tmp_path)
    sets = splits.test or splits.dev
    set_name, rows = next(iter(sets.items()))
    assert task.submission is not None
    file, content = task.submission(set_name, rows, [_right(name, row) for row in rows])
    expected = {
        "mnli": ("MNLI-m.tsv", "index\tprediction\n0\t1\n1\t1\n2\t1\n"),
        "mrpc": ("MRPC.tsv", "index\tprediction\n0\t1\n1\t1\n2\t1\n"),
        "boolq": ("BoolQ.jsonl", "".join(f'{{"idx": {n}, "label": "1"}}\n' for n in range(3))),
        "record": ("ReCoRD.jsonl", "".join(f'{{"idx": {n}, "label": "navy"}}\n' for n in range(3))),
    }
    if name in expected:
        assert (file, content) == expected[name]
    elif name == "multirc":
        first = json.loads(content.splitlines()[0])
        answers = [{"idx": 0, "label": 1}, {"idx": 1, "label": 1}]
        assert first == {"idx": 0, "passage": {"questions": [{"idx": 0, "answers": answers}]}}
    elif name == "squad2":
        assert (file, json.loads(content)["q0"]) == ("dev_predictions.json", "1812")
    else:
        assert content.startswith("The O O\nnavy I-ORG I-ORG\nof O O\nSpain I-LOC I-LOC\n\n")


def test_rows_hold_what_the_files_say(tmp_path: Path) -> None:
    mnli = _read("mnli", tmp_path / "mnli")
    assert len(mnli.dev["dev_matched"]) == 5  # one of six has no agreed label
    mrpc = _read("mrpc", tmp_path / "mrpc").train[0]
    assert mrpc.text.startswith('"The war') and mrpc.label == "0"
    record = _read("record", tmp_path / "record").train
    assert [row.pair for row in record[:2]] == ["the navy won", "the army won"]
    assert [row.label for row in record[:2]] == ["1", "0"]
    race = _read("race", tmp_path / "race").train
    assert [row.choices[3][1] for row in race[:2]] == ["What is it?  land", "It is land ."]
    assert _read("wsc", tmp_path / "wsc").train[0].text.startswith("The navy says that * it * The")
    assert _read("squad2", tmp_path / "squad2").dev["dev"][-1].answers == ()
    words = _read("conll2003", tmp_path / "conll2003").train[1]
    assert words == TokenRow("1", ("The", "navy", "of", "Texas"), ("O", "I-ORG", "O", "I-LOC"))


def test_an_unknown_task_is_compared_with_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task 'sst2'; did you mean sst-2\? known: cola, "):
        find_task("sst2")
    assert find_task("CoLA").name == "cola"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("sst-2", {}, "holds neither train.tsv nor SST-2/train.tsv"),
        ("sst-2", {"train.tsv": "text\tlabel\na\t1\n"}, "has no column 'sentence', but 'text', 'label'"),
        ("sst-2", {"train.tsv": "sentence\tlabel\na\n"}, "row 1 has 1 fields where the header has 2"),
        ("sst-2", {"train.tsv": "sentence\tlabel\n"}, "holds no rows"),
        ("sts-b", {"train.tsv": "sentence1\tsentence2\tscore\na\tb\tgood\n"}, "row 1 has the score 'good'"),
        ("boolq", {"train.jsonl": '{"question": 1}\n'}, "row 1 is not one of this task .*'question'"),
        ("boolq", {"train.jsonl": "{\n"}, "line 1: is not JSON"),
        ("squad", {}, "train-v1.1.json: is missing"),
        ("squad", {"train-v1.1.json": "{}", "dev-v1.1.json": "{}"}, "is not in SQuAD's format"),
        ("race", {}, r"holds no high/\*.txt or middle/\*.txt"),
        ("conll2003", {}, "holds none of eng.train, train.txt"),
        ("conll2003", {"eng.train": "word\n", "eng.testa": "word\n"}, "line 1 has one column"),
        ("swag", {"train.csv": "a,b\n1,2\n"}, "has no column 'sent1'"),
    ],
)
def test_what_is_not_the_published_format_is_named(
    name: str, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        TASKS[name].read(tmp_path, {})


def test_a_misplaced_answer_of_squad_is_named(tmp_path: Path) -> None:
    _, write = PUBLISHED["squad"]
    write(tmp_path)
    text = (tmp_path / "dev-v1.1.json").read_text().replace('"answer_start": 20', '"answer_start": 21')
    write_lines(tmp_path / "dev-v1.1.json", [text])
    with pytest.raises(DataError, match="the answer of q0 is not where its answer_start says"):
        TASKS["squad"].read(tmp_path, {})


def test_classes_must_be_known_and_two(tmp_path: Path) -> None:
    header, task = ["sentence", "label"], TASKS["sst-2"]
    for split, label in {"train": 1, "dev": 2}.items():
        write_tsv(tmp_path / f"{split}.tsv", header, [("a", label)])
    with pytest.raises(DataError, match="a row of the dev set has the label '2'; known are '0', '1'"):
        labels_of(task, task.read(tmp_path, {}), tmp_path)
    own = TASKS["classification"]
    write_lines(tmp_path / "own" / "train.jsonl", ['{"text": "a", "label": "x"}'] * 4)
    with pytest.raises(DataError, match=r"the training rows have 1 classes \(x\); two are needed"):
        labels_of(own, own.read(tmp_path / "own", {}), tmp_path)


def test_rows_of_one_text_have_no_pair(tmp_path: Path) -> None:
    assert all(isinstance(row, TextRow) and row.pair is None for row in _read("cola", tmp_path).train)
