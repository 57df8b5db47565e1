"""``loss_curve.png``: training loss, validation loss and the loss of a model that knows word frequencies only."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megadeberta.errors import StorageError
from megadeberta.observability.metrics import Record, read_metrics
from megadeberta.storage import write_file

logger = logging.getLogger(__name__)

TRAIN_LOSS, VALID_LOSS = "loss", "valid_loss"
_SMOOTHING_SHARE = 50  # the moving average spans a fiftieth of the run


def plot_loss_curve(metrics: Path, picture: Path, *, title: str, unigram: float | None = None) -> bool:
    """Draw the curve of a metrics file; replaces ``picture`` in one step. False when it was not drawn.

    Args:
        unigram: cross-entropy of the validation text under its word frequencies, in nats.
    """
    records = read_metrics(metrics)
    train, valid = _points(records, TRAIN_LOSS), _points(records, VALID_LOSS)
    if not train:
        return False
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=1.6, label="training, moving average")
    if valid:
        valid_steps, valid_losses = zip(*valid, strict=True)
        label = f"validation, last {valid_losses[-1]:.3f}"
        axes.plot(valid_steps, valid_losses, color="tab:orange", marker="o", markersize=4, label=label)
    if unigram is not None:
        axes.axhline(unigram, color="tab:gray", linestyle="--", label=f"unigram cross-entropy {unigram:.3f}")
    axes.set(title=title, xlabel="optimizer step", ylabel="MLM loss (nats a masked token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    try:
        write_file(picture, image.getvalue())
    except StorageError as error:  # a picture can be drawn again; the run goes on
        logger.warning("no loss curve: %s", error)
        return False
    return True


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and those before it, as many as a fiftieth of all (one at least)."""
    width = max(1, len(values) // _SMOOTHING_SHARE)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = range(1, len(sums))
    return [(sums[end] - sums[max(0, end - width)]) / min(end, width) for end in ends]


def _points(records: Sequence[Record], name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]
