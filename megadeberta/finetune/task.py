"""A task: where its rows come from, what kind it is, and how its predictions are scored. Never torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.errors import DataError
from megadeberta.finetune.rows import Prediction, Row, Splits

Metrics = dict[str, float]
Columns = Mapping[str, str]
"""For tables of one's own: the name a task uses -> the column that has it."""


@dataclass(frozen=True)
class Defaults:
    """Settings of a task where the command gives none: those of the base model in microsoft/DeBERTa's scripts."""

    length: int
    """Longest sequence in tokens, [CLS] and [SEP] included."""
    epochs: int = 6
    batch_size: int = 32
    warmup: int = 100
    """Steps."""
    dropout: float = 0.15
    """Before the classifier."""


@dataclass(frozen=True)
class Task:
    """One entry of the table of tasks."""

    name: str
    summary: str
    kind: str
    """A name of :data:`megadeberta.finetune.kinds.table.KINDS`."""
    read: Callable[[Path, Columns], Splits]
    metrics: Callable[[Sequence[Any], Sequence[Prediction]], Metrics]
    main: str
    """The metric by which epochs and settings are chosen; higher is better."""
    defaults: Defaults
    labels: tuple[str, ...] | None = None
    """In the order of the classifier's outputs; None: those of the training rows, sorted."""
    submission: Callable[[str, Sequence[Row], Sequence[Prediction]], tuple[str, str]] | None = None
    """From the name of a test set to the name and content of the file that its leaderboard takes."""
    takes_columns: bool = False
    """Whether ``read`` looks at ``Columns``."""


def score(task: Task, rows: Sequence[Row], predictions: Sequence[Prediction]) -> Metrics:
    """The metrics of a labelled set, and first of all ``task.main``."""
    found = task.metrics(rows, predictions)
    return {task.main: found.pop(task.main), **found}


def labels_of(task: Task, splits: Splits, source: Path) -> tuple[str, ...]:
    """Class names in the order of the outputs; of regressions, choices and spans none.

    Raises:
        DataError: fewer than two classes, or a set has one that training has not.
    """
    trained = _classes(splits.train)
    labels = task.labels if task.labels is not None else tuple(sorted(trained))
    if task.kind not in ("classification", "tokens"):
        return ()
    if len(labels) < 2:
        raise DataError(f"{source}: the training rows have {len(labels)} classes ({', '.join(labels)}); two are needed")
    sets: dict[str, Sequence[Row]] = {"training": splits.train, **splits.dev, **splits.test}
    for name, rows in sets.items():
        unknown = sorted(_classes(rows) - set(labels))
        if unknown:
            known = ", ".join(map(repr, labels[:20]))
            raise DataError(f"{source}: a row of the {name} set has the label {unknown[0]!r}; known are {known}")
    return labels


def is_labelled(rows: Sequence[Row]) -> bool:
    """Whether every row has what it is to be compared with."""
    return all(_is_labelled(row) for row in rows)


def _is_labelled(row: Any) -> bool:
    for name in ("labelled", "tags", "label"):
        if hasattr(row, name):
            value = getattr(row, name)
            return bool(value) if name == "labelled" else value is not None
    raise AssertionError(type(row))


def _classes(rows: Sequence[Any]) -> set[str]:
    found: set[str] = set()
    for row in rows:
        if isinstance(getattr(row, "label", None), str):
            found.add(row.label)
        found.update(getattr(row, "tags", None) or ())
    return found
