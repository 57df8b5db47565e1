"""``loss_curve.png``: training and validation losses, and the loss of a model that knows word frequencies only."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megadeberta.errors import StorageError
from megadeberta.layers.terms import baselines, term
from megadeberta.observability.metrics import SOURCE_MARK, Record, read_metrics
from megadeberta.storage import write_file

logger = logging.getLogger(__name__)

_SOURCES_NAMED = 12
_SMOOTHING_SHARE = 50  # the moving average spans a fiftieth of the run


def plot_loss_curve(
    metrics: Path, picture: Path, *, title: str, losses: Sequence[str], unigram: float | None = None
) -> bool:
    """Draw the curves of a metrics file, one panel per loss; replaces ``picture`` at once. False when it was not drawn.

    Args:
        losses: names of loss terms; validation values are under ``valid_`` and the same name.
        unigram: cross-entropy of the validation text under its word frequencies, in nats.
    """
    records = read_metrics(metrics)
    if not any(points(records, name) for name in losses):
        return False
    figure = Figure(figsize=(8, 4.5 * len(losses)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(losses, start=1):
        panel = figure.add_subplot(len(losses), 1, number)
        _draw_panel(panel, points(records, name), points(records, f"valid_{name}"))
        _draw_sources(panel, records, f"valid_{name}{SOURCE_MARK}")
        entry = term(name)
        _draw_baseline(panel, records, name, unigram)
        panel.set(title=title if number == 1 else "", xlabel="optimizer step", ylabel=f"{entry.title} ({entry.unit})")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    try:
        write_file(picture, image.getvalue())
    except StorageError as error:  # a picture can be drawn again; the run goes on
        logger.warning("no loss curve: %s", error)
        return False
    return True


def _draw_panel(panel: Axes, train: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]]) -> None:
    if train:
        steps, losses = zip(*train, strict=True)
        panel.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        panel.plot(steps, smooth(losses), color="tab:blue", linewidth=1.6, label=_training_label(len(losses)))
    if valid:
        steps, losses = zip(*valid, strict=True)
        label = f"validation, last {losses[-1]:.3f}"
        panel.plot(steps, losses, color="tab:orange", marker="o", markersize=4, label=label)


def _draw_baseline(panel: Axes, records: Sequence[Record], name: str, unigram: float | None) -> None:
    """The loss of a model that sees no context: constant for tokens, of each validation for replaced ones."""
    entry = term(name)
    style: dict[str, Any] = {"color": "tab:gray", "linestyle": "--"}
    if unigram is not None and entry.predicts_tokens:
        panel.axhline(unigram, **style, label=f"{entry.baseline_title} {unigram:.3f}")
    if entry.told_apart:
        rates = points(records, f"valid_{entry.told_apart}") or points(records, entry.told_apart)
        values = [baselines({name: 0.0, entry.told_apart: rate}, None)[name] for _, rate in rates]
        if values:
            panel.plot([step for step, _ in rates], values, **style, label=f"{entry.baseline_title} {values[-1]:.3f}")


def _training_label(points: int) -> str:
    return "training, moving average" if points >= 2 * _SMOOTHING_SHARE else "training"


def _draw_sources(panel: Axes, records: Sequence[Record], start: str) -> None:
    """Thin lines, one per validation file where there are several; only a few of them have room in the legend."""
    names = {name: None for record in records for name in record if name.startswith(start)}
    for name in names:
        found = points(records, name)
        if found:
            steps, losses = zip(*found, strict=True)
            label = name.removeprefix(start) if len(names) <= _SOURCES_NAMED else None
            panel.plot(steps, losses, linewidth=0.8, marker=".", markersize=3, label=label)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and those before it, as many as a fiftieth of all (one at least)."""
    width = max(1, len(values) // _SMOOTHING_SHARE)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = range(1, len(sums))
    return [(sums[end] - sums[max(0, end - width)]) / min(end, width) for end in ends]


def points(records: Sequence[Record], name: str) -> list[tuple[int, float]]:
    """Step and value of every record that has a number under this name."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]
