"""Draw the curves of an MLM run and an RTD run side by side.

python docs/examples/compare_runs.py runs/small-mlm runs/small-rtd docs/images/mlm-and-rtd.png
"""

import math
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megadeberta.observability.metrics import METRICS_FILE, Record, read_metrics
from megadeberta.observability.plot import smooth


def points(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def main(mlm: Path, rtd: Path, picture: Path) -> None:
    figure = Figure(figsize=(9, 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    tokens, calls = figure.subplots(2, 1)
    for folder, label, color in ((mlm, "MLM run", "tab:blue"), (rtd, "generator of the RTD run", "tab:orange")):
        records = read_metrics(folder / METRICS_FILE)
        steps, losses = points(records, "mlm_loss")
        tokens.plot(steps, smooth(losses), color=color, label=f"{label}, training (smoothed)")
        steps, losses = points(records, "valid_mlm_loss")
        tokens.plot(steps, losses, "o", color=color, label=f"{label}, validation, last {losses[-1]:.3f}")
    _, unigram = points(records, "unigram_cross_entropy")
    tokens.axhline(unigram[0], color="tab:gray", linestyle="--", label=f"word frequencies alone, {unigram[0]:.3f}")
    tokens.set(ylabel="MLM loss (nats a masked token)")
    steps, losses = points(records, "rtd_loss")
    calls.plot(steps, smooth(losses), color="tab:green", label="RTD loss, training (smoothed)")
    steps, losses = points(records, "valid_rtd_loss")
    calls.plot(steps, losses, "o", color="tab:green", label=f"RTD loss, validation, last {losses[-1]:.4f}")
    steps, shares = points(records, "valid_replaced_rate")
    chance = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in shares]
    calls.plot(steps, chance, "--", color="tab:gray", label="knowing the share of replaced tokens alone")
    steps, shares = points(records, "replaced_rate")
    calls.plot(steps, smooth(shares), color="tab:purple", label="share of tokens replaced")
    steps, shares = points(records, "rtd_recall")
    calls.plot(steps, smooth(shares), color="tab:red", label="replaced tokens found (recall)")
    calls.set(ylabel="nats a token, shares", ylim=(0, 0.7))
    for axes in (tokens, calls):
        axes.set(xlabel="optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
