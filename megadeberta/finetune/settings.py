"""Settings of fine-tuning: what is fixed for all runs, and what a grid varies. Never torch.

The grid is Table 9 of the DeBERTa paper. Other constants are in all columns of that table, and in ``OPTIMIZER``.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megadeberta.errors import ConfigError
from megadeberta.finetune.sift_settings import SiftSettings

OPTIMIZER: dict[str, Any] = {
    "weight_decay": 0.01,
    "adam_epsilon": 1e-6,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
}
"""Table 9, by the names that transformers has for them."""


@dataclass(frozen=True)
class Point:
    """What a grid varies."""

    lr: float
    batch_size: int
    """Of one step, over all ranks."""
    warmup: int
    """Steps in which the learning rate rises."""
    dropout: float | None
    """Before the classifier; None: the head has none of its own."""


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    epochs: int
    length: int
    seeds: tuple[int, ...]
    sift: SiftSettings | None = None
    micro_batch: int | None = None
    """Sequences of one rank at a time; None: all of a step. Smaller ones are added up."""
    precision: str = "fp32"
    """fp32, or bf16 for the products."""
    attention: str = "auto"
    """A backend of ours, "auto", or "eager" for transformers' own."""
    zero: int = 0
    """Stage of DeepSpeed's ZeRO; 0: torch's data parallelism."""


@dataclass(frozen=True)
class _Column:
    """A column of Table 9."""

    hidden: int
    """The smallest hidden size that it is for."""
    lr: tuple[float, ...]
    batch: tuple[int, ...]
    dropout: tuple[float, ...]
    warmup: tuple[int, ...] = (50, 100, 500, 1000)


_TABLE_9 = (
    _Column(1536, (1e-6, 3e-6, 5e-6), (16, 32, 64), (0.0, 0.15, 0.3)),
    _Column(1024, (5e-6, 8e-6, 9e-6, 1e-5), (16, 32, 48, 64), (0.0, 0.1, 0.15)),
    _Column(0, (1.5e-5, 2e-5, 3e-5, 4e-5), (16, 32, 48, 64), (0.0, 0.1, 0.15)),
)
_LEARNING_RATES = ((1536, 3e-6), (1024, 1e-5), (768, 2e-5), (384, 4.5e-5), (0, 2e-4))
"""Hidden size from which on -> the rate of microsoft/DeBERTa's scripts; below 384 no published model is: ours."""
AXES = ("lr", "batch", "dropout", "warmup")


def default_lr(hidden_size: int) -> float:
    """The learning rate of a model of this width."""
    return next(rate for least, rate in _LEARNING_RATES if hidden_size >= least)


def parse_axes(text: str) -> tuple[str, ...]:
    """The axes of ``--grid``.

    Raises:
        ConfigError: one of them is not of the table.
    """
    names = AXES if text == "all" else tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in AXES:
            raise ConfigError(f"--grid {text}: {name!r} is none of {', '.join(AXES)}; name some of them, or all")
    return names


def grid(start: Point, axes: Sequence[str], *, hidden_size: int) -> list[Point]:
    """The points of Table 9 along ``axes``, all else as in ``start``; ``start`` itself without axes.

    Raises:
        ConfigError: an axis of dropout, and the head has none.
    """
    if "dropout" in axes and start.dropout is None:
        raise ConfigError("--grid dropout: the head of this task has no dropout of its own; leave that axis out")
    column = next(column for column in _TABLE_9 if hidden_size >= column.hidden)
    return list(_points(start, axes, column))


def _points(start: Point, axes: Sequence[str], column: _Column) -> Iterator[Point]:
    choices = {"lr": column.lr, "batch_size": column.batch, "dropout": column.dropout, "warmup": column.warmup}
    names = ["batch_size" if axis == "batch" else axis for axis in axes]
    for values in itertools.product(*(choices[name] for name in names)):
        changes: dict[str, Any] = dict(zip(names, values, strict=True))
        yield replace(start, **changes)


def within_run(points: Sequence[Point], *, sequences: int, epochs: int) -> list[Point]:
    """The points with a warm-up of a tenth of the run where theirs would take half of it or more, as of few rows."""
    found = []
    for point in points:
        steps = epochs * -(-sequences // point.batch_size)
        found.append(point if point.warmup < steps / 2 else replace(point, warmup=steps // 10))
    return list(dict.fromkeys(found))
