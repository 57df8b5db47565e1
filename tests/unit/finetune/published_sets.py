"""A few rows of every task, in the files that its authors publish."""

import json
from pathlib import Path
from typing import Any

from tests.unit.finetune.small_sets import (
    sentence,
    sst2,
    write_csv,
    write_jsonl,
    write_lines,
    write_tsv,
)

_MNLI = ["index", "promptID", "pairID", "genre", "sentence1", "sentence2"]
_NLI = ["entailment", "neutral", "contradiction"]
_RTE = ["entailment", "not_entailment"]
TRAIN, DEV = 12, 6


def _glue_pairs(folder: Path, first: str, second: str, label: str, labels: list[Any]) -> None:
    for split, count in {"train": TRAIN, "dev": DEV}.items():
        rows = [(n, sentence(n), sentence(n + 1), labels[n % len(labels)]) for n in range(count)]
        write_tsv(folder / f"{split}.tsv", ["index", first, second, label], rows)
    write_tsv(folder / "test.tsv", ["index", first, second], [(n, sentence(n), sentence(n)) for n in range(3)])


def cola(folder: Path) -> None:
    for split, count in {"train": TRAIN, "dev": DEV}.items():
        write_tsv(folder / f"{split}.tsv", [], [("gj04", n % 2, "*" * (n % 2), sentence(n)) for n in range(count)])
    write_tsv(folder / "test.tsv", ["index", "sentence"], [(n, sentence(n)) for n in range(3)])


def mnli(folder: Path) -> None:
    header = [*_MNLI, "label1", "gold_label"]
    for split, count in {"train": TRAIN, "dev_matched": DEV, "dev_mismatched": DEV}.items():
        labels = [*_NLI, "-"] if split != "train" else _NLI
        rows = [(n, n, n, "fiction", sentence(n), sentence(n + 1), "x", labels[n % len(labels)]) for n in range(count)]
        write_tsv(folder / f"{split}.tsv", header, rows)
    for split in ("test_matched", "test_mismatched"):
        rows = [(n, n, n, "fiction", sentence(n), sentence(n)) for n in range(3)]
        write_tsv(folder / f"{split}.tsv", _MNLI, rows)


def mrpc(folder: Path) -> None:
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    for split, count in {"train": TRAIN, "dev": DEV}.items():
        # A quotation mark that is never closed is text here.
        rows = [(n % 2, n, n, f'"{sentence(n)}', sentence(n + 1)) for n in range(count)]
        write_tsv(folder / f"{split}.tsv", header, rows)
    write_tsv(folder / "test.tsv", ["index", *header[1:]], [(n, n, n, sentence(n), sentence(n)) for n in range(3)])


def qqp(folder: Path) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    for split, count in {"train": TRAIN, "dev": DEV}.items():
        rows = [(n, n, n, sentence(n), sentence(n + 1), n % 2) for n in range(count)]
        write_tsv(folder / f"{split}.tsv", header, rows)
    write_tsv(folder / "test.tsv", ["id", "question1", "question2"], [(n, sentence(n), sentence(n)) for n in range(3)])


def _superglue(folder: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows[:DEV])
    unlabelled = [{name: value for name, value in row.items() if name != "label"} for row in rows[:3]]
    write_jsonl(folder / "test.jsonl", unlabelled)


def boolq(folder: Path) -> None:
    rows = [{"question": "is it so", "passage": sentence(n), "idx": n, "label": n % 2 == 0} for n in range(TRAIN)]
    _superglue(folder, rows)


def cb(folder: Path) -> None:
    labels = ["entailment", "contradiction", "neutral"]
    rows = [
        {"premise": sentence(n), "hypothesis": sentence(n + 1), "label": labels[n % 3], "idx": n} for n in range(TRAIN)
    ]
    _superglue(folder, rows)


def superglue_rte(folder: Path) -> None:
    rows = [
        {"premise": sentence(n), "hypothesis": sentence(n + 1), "label": _RTE[n % 2], "idx": n} for n in range(TRAIN)
    ]
    _superglue(folder, rows)


def copa(folder: Path) -> None:
    rows = [
        {
            "premise": sentence(n),
            "choice1": "war",
            "choice2": "peace",
            "question": ("cause", "effect")[n % 2],
            "label": n % 2,
            "idx": n,
        }
        for n in range(TRAIN)
    ]
    _superglue(folder, rows)


def multirc(folder: Path) -> None:
    def passage(n: int, labelled: bool) -> dict[str, Any]:
        answers = [{"text": sentence(n + k), "idx": 3 * n + k} | ({"label": k % 2} if labelled else {}) for k in (0, 1)]
        return {
            "idx": n,
            "passage": {"text": sentence(n), "questions": [{"question": "?", "answers": answers, "idx": n}]},
        }

    write_jsonl(folder / "train.jsonl", [passage(n, True) for n in range(TRAIN)])
    write_jsonl(folder / "val.jsonl", [passage(n, True) for n in range(DEV)])
    write_jsonl(folder / "test.jsonl", [passage(n, False) for n in range(3)])


def record(folder: Path) -> None:
    text = "The navy met the army .\n@highlight\nThe war is over"
    entities = [{"start": 4, "end": 7}, {"start": 17, "end": 20}]

    def passage(n: int, labelled: bool) -> dict[str, Any]:
        query = {"idx": n, "query": "the @placeholder won"}
        answers = {"answers": [{"start": 4, "end": 7, "text": ("navy", "army")[n % 2]}]} if labelled else {}
        return {"passage": {"text": text, "entities": entities}, "qas": [query | answers], "idx": n}

    write_jsonl(folder / "train.jsonl", [passage(n, True) for n in range(TRAIN)])
    write_jsonl(folder / "val.jsonl", [passage(n, True) for n in range(DEV)])
    write_jsonl(folder / "test.jsonl", [passage(n, False) for n in range(3)])


def wic(folder: Path) -> None:
    rows = [
        {"word": "war", "sentence1": sentence(n), "sentence2": sentence(n + 1), "idx": n, "label": n % 2 == 0}
        for n in range(TRAIN)
    ]
    _superglue(folder, rows)


def wsc(folder: Path) -> None:
    target = {"span1_index": 1, "span1_text": "navy", "span2_index": 4, "span2_text": "it"}
    rows = [
        {"text": f"The navy says that it {sentence(n)}", "target": target, "idx": n, "label": n % 2 == 0}
        for n in range(TRAIN)
    ]
    _superglue(folder, rows)


def squad(folder: Path, version: str = "v1.1") -> None:
    context = "The war of the year 1812 is the war of the states and the peace of 1815 ended it."

    def content(count: int) -> dict[str, Any]:
        answers = [{"text": "1812", "answer_start": context.index("1812")}]
        questions = [{"id": f"q{n}", "question": f"When was {n} the war?", "answers": answers} for n in range(count)]
        if version == "v2.0":
            questions = [q | {"is_impossible": False} for q in questions]
            questions[-1] |= {"is_impossible": True, "answers": [], "plausible_answers": answers}
        return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}

    for split, count in {"train": TRAIN, "dev": DEV}.items():
        write_lines(folder / f"{split}-{version}.json", [json.dumps(content(count))])


def race(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        for level in ("high", "middle"):
            for number in range(3):
                content = {
                    "article": sentence(number),
                    "questions": ["What is it? ", "It is _ ."],
                    "options": [["war", "peace", "law", "land"]] * 2,
                    "answers": ["A", "D"],
                    "id": f"{level}{number}.txt",
                }
                write_lines(folder / split / level / f"{number}.txt", [json.dumps(content)])


def swag(folder: Path) -> None:
    header = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
    header += ["ending0", "ending1", "ending2", "ending3"]
    for split, count in {"train": TRAIN, "val": DEV}.items():
        rows = [
            (n, "v", n, "", sentence(n), "It", "gold", "a war", "a law", "land", "gold", n % 4) for n in range(count)
        ]
        write_csv(folder / f"{split}.csv", [*header, "label"], rows)
    rows = [(n, "v", n, "", sentence(n), "It", "gold", "a war", "a law", "land", "gold") for n in range(3)]
    write_csv(folder / "test.csv", header, rows)


def conll(folder: Path) -> None:
    lines = ["-DOCSTART- -X- O O", ""]
    for n in range(TRAIN):
        lines += [
            "The DT I-NP O",
            "navy NN I-NP I-ORG",
            "of IN I-PP O",
            f"{('Spain', 'Texas')[n % 2]} NNP I-NP I-LOC",
            "",
        ]
    for name in ("eng.train", "eng.testa", "eng.testb"):
        write_lines(folder / name, lines)


PUBLISHED = {
    "cola": ("CoLA", cola),
    "sst-2": ("SST-2", sst2),
    "mrpc": ("MRPC", mrpc),
    "qqp": ("QQP", qqp),
    "sts-b": ("STS-B", lambda f: _glue_pairs(f, "sentence1", "sentence2", "score", [0.5, 4.25, 2.0])),
    "mnli": ("MNLI", mnli),
    "qnli": ("QNLI", lambda f: _glue_pairs(f, "question", "sentence", "label", _RTE)),
    "rte": ("RTE", lambda f: _glue_pairs(f, "sentence1", "sentence2", "label", _RTE)),
    "wnli": ("WNLI", lambda f: _glue_pairs(f, "sentence1", "sentence2", "label", [0, 1])),
    "boolq": ("BoolQ", boolq),
    "cb": ("CB", cb),
    "copa": ("COPA", copa),
    "multirc": ("MultiRC", multirc),
    "record": ("ReCoRD", record),
    "superglue-rte": ("RTE", superglue_rte),
    "wic": ("WiC", wic),
    "wsc": ("WSC", wsc),
    "squad": ("", squad),
    "squad2": ("", lambda folder: squad(folder, "v2.0")),
    "race": ("", race),
    "swag": ("", swag),
    "conll2003": ("", conll),
}
"""Task -> the folder that its files lie in, and what writes them."""
