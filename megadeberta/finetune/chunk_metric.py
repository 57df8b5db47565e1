"""Precision, recall and F1 of named entities, by CoNLL's own definition (conlleval of CoNLL-2000 and 2003).

An entity is right if its words and its type are. Tags may be IOB1 (B- only between two entities of one type), as
CoNLL-2003 was published, or IOB2 (every entity begins with B-): both are read by the same rule.
"""

from collections.abc import Sequence

from megadeberta.finetune.rows import Prediction, TokenRow
from megadeberta.finetune.task import Metrics

Chunk = tuple[int, int, str]
"""First word, one behind the last word, type."""


def chunks(tags: Sequence[str]) -> set[Chunk]:
    """The entities of a sentence."""
    found: set[Chunk] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, of = tag.partition("-")
        goes_on = kind and prefix == "I" and of == kind
        if kind and not goes_on:
            found.add((start, place, kind))
            kind = ""
        if tag != "O" and not goes_on:
            start, kind = place, of or prefix
    return found


def chunk_metrics(rows: Sequence[TokenRow], predictions: Sequence[Prediction]) -> Metrics:
    """Over all entities, and the accuracy of tags."""
    right = called = wanted = same = words = 0
    for row, prediction in zip(rows, predictions, strict=True):
        assert row.tags is not None and isinstance(prediction.value, tuple)
        gold, found = chunks(row.tags), chunks(prediction.value)
        right, called, wanted = right + len(gold & found), called + len(found), wanted + len(gold)
        same += sum(one == other for one, other in zip(row.tags, prediction.value, strict=True))
        words += len(row.tags)
    precision, recall = right / called if called else 0.0, right / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "accuracy": same / words}


def tag_metrics(rows: Sequence[TokenRow], predictions: Sequence[Prediction]) -> Metrics:
    """Accuracy over words, for tags that mark no entities, such as parts of speech."""
    return {"accuracy": chunk_metrics(rows, predictions)["accuracy"]}
