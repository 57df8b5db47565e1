"""The official metrics, by scikit-learn and scipy; SQuAD's and CoNLL's own definitions are in files beside this one.

All values are fractions of one. The libraries are imported when a metric is computed: they are an extra.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from megadeberta.finetune.rows import Prediction, Row
from megadeberta.finetune.task import Metrics

Scorer = Callable[[Sequence[Any], Sequence[Prediction]], Metrics]


def pick(*names: str) -> Scorer:
    """The scorer of some metrics of ``METRICS``, over labels or numbers."""

    def score(rows: Sequence[Any], predictions: Sequence[Prediction]) -> Metrics:
        gold, found = [row.label for row in rows], [prediction.value for prediction in predictions]
        return {name: METRICS[name](gold, found) for name in names}

    return score


def accuracy_by_group(rows: Sequence[Any], predictions: Sequence[Prediction]) -> Metrics:
    """Accuracy of all rows, and of each group's."""
    right = [prediction.value == row.label for row, prediction in zip(rows, predictions, strict=True)]
    found = {"accuracy": sum(right) / len(right)}
    for group in sorted({row.group for row in rows if row.group}):
        of_group = [good for row, good in zip(rows, right, strict=True) if row.group == group]
        found[f"accuracy_{group}"] = sum(of_group) / len(of_group)
    return found


def mean_accuracy_f1(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Metrics:
    """MRPC and QQP: accuracy, F1 of "1", and their mean."""
    found = pick("accuracy", "f1")(rows, predictions)
    return found | {"mean": (found["accuracy"] + found["f1"]) / 2}


def mean_accuracy_macro_f1(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Metrics:
    """CB: accuracy, the mean F1 of the classes, and the mean of both."""
    found = pick("accuracy", "macro_f1")(rows, predictions)
    return found | {"mean": (found["accuracy"] + found["macro_f1"]) / 2}


def mean_correlation(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Metrics:
    """STS-B: Pearson's and Spearman's correlation and their mean."""
    found = pick("pearson", "spearman")(rows, predictions)
    return found | {"mean": (found["pearson"] + found["spearman"]) / 2}


def regression_metrics(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Metrics:
    """Both correlations, and the root of the mean squared error."""
    return pick("spearman", "pearson", "rmse")(rows, predictions)


def _accuracy(gold: Sequence[Any], found: Sequence[Any]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(gold, found))


def _f1(gold: Sequence[str], found: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score([label == "1" for label in gold], [label == "1" for label in found], zero_division=0.0))


def _macro_f1(gold: Sequence[str], found: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, found, average="macro", zero_division=0.0))


def _matthews(gold: Sequence[str], found: Sequence[str]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, found))


def _pearson(gold: Sequence[float], found: Sequence[float]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, gold, found)


def _spearman(gold: Sequence[float], found: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, gold, found)


def _correlation(function: Callable[..., Any], gold: Sequence[float], found: Sequence[float]) -> float:
    """Zero where one side does not vary, and scipy gives NaN with a warning."""
    if len(set(gold)) < 2 or len(set(found)) < 2:
        return 0.0
    return float(function(gold, found).statistic)


def _rmse(gold: Sequence[float], found: Sequence[float]) -> float:
    from sklearn.metrics import mean_squared_error

    return math.sqrt(float(mean_squared_error(gold, found)))


METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": _rmse,
}
