"""SQuAD's own exact match and F1 (Rajpurkar et al. 2016, 2018; the official evaluate-v1.1.py and evaluate-v2.0.py).

MultiRC and ReCoRD of SuperGLUE build on the same normalised answers.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence

from megadeberta.finetune.metrics import pick
from megadeberta.finetune.rows import Prediction, SpanRow, TextRow
from megadeberta.finetune.task import Metrics

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(found: str, answer: str) -> float:
    """One if both are the same when normalised."""
    return float(normalize_answer(found) == normalize_answer(answer))


def word_f1(found: str, answer: str) -> float:
    """F1 of the words; where one has none, one if the other has none either."""
    ours, gold = normalize_answer(found).split(), normalize_answer(answer).split()
    if not ours or not gold:
        return float(ours == gold)
    common = sum((Counter(ours) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(ours), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad_metrics(rows: Sequence[SpanRow], predictions: Sequence[Prediction]) -> Metrics:
    """The best over all answers of each question; "" is the answer of a question that has none.

    Questions with and without answer are counted apart where there are both, as by evaluate-v2.0.py.
    """
    exact, f1 = [], []
    for row, prediction in zip(rows, predictions, strict=True):
        # evaluate-v2.0.py: answers that normalise to nothing do not count; a question without others has the answer "".
        gold = [answer for answer in row.answers if normalize_answer(answer)] or [""]
        exact.append(max(exact_match(str(prediction.value), answer) for answer in gold))
        f1.append(max(word_f1(str(prediction.value), answer) for answer in gold))
    found = {"f1": _mean(f1), "exact_match": _mean(exact)}
    has_answer = [bool(row.answers) for row in rows]
    if any(has_answer) and not all(has_answer):
        for name, wanted in (("answerable", True), ("unanswerable", False)):
            chosen = [number for number, has in enumerate(has_answer) if has is wanted]
            found[f"f1_{name}"] = _mean([f1[number] for number in chosen])
            found[f"exact_match_{name}"] = _mean([exact[number] for number in chosen])
    return found


def multirc_metrics(rows: Sequence[TextRow], predictions: Sequence[Prediction]) -> Metrics:
    """MultiRC: F1 over all answers (F1a), the fraction of questions with every answer right, and their mean."""
    f1 = pick("f1")(rows, predictions)["f1"]
    right: dict[str, bool] = defaultdict(lambda: True)
    for row, prediction in zip(rows, predictions, strict=True):
        right[row.group] &= prediction.value == row.label
    exact = _mean([float(value) for value in right.values()])
    return {"mean": (f1 + exact) / 2, "f1a": f1, "exact_match": exact}


def record_metrics(rows: Sequence[TextRow], predictions: Sequence[Prediction]) -> Metrics:
    """ReCoRD: of every query's candidates the likeliest, compared with all right answers as in SQuAD."""
    exact, f1 = [], []
    for row in likeliest(rows, predictions).values():
        exact.append(max(exact_match(row.candidate, answer) for answer in row.answers))
        f1.append(max(word_f1(row.candidate, answer) for answer in row.answers))
    return {"f1": _mean(f1), "exact_match": _mean(exact)}


def likeliest(rows: Sequence[TextRow], predictions: Sequence[Prediction]) -> dict[str, TextRow]:
    """Of each group the row whose last label is the most probable; the first of equals."""
    best: dict[str, tuple[float, TextRow]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        if row.group not in best or prediction.scores[-1] > best[row.group][0]:
            best[row.group] = (prediction.scores[-1], row)
    return {group: row for group, (_, row) in best.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
