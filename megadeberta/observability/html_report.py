"""`megadeberta report --html`: one page of one run or several, that needs no network and no other file."""

import contextlib
import html
import io
import json
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

import megadeberta
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.checkpoint.manifest import Manifest, read_manifest
from megadeberta.config.changes import flat_settings
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.layers.terms import TERMS, baselines
from megadeberta.observability.metrics import METRICS_FILE, RECIPE_FILE, Record, read_metrics
from megadeberta.observability.phase_times import MEMORY, TIME_PREFIX
from megadeberta.observability.plot import points, smooth
from megadeberta.observability.report import TRAIN_LOSS, VALID_LOSS, verdicts

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
_MORE_CURVES = {
    "tokens_per_second": "tokens per second",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    MEMORY: "memory of rank 0's GPU (GiB)",
}
"""Drawn below the losses: name in metrics.jsonl, and label."""
_RATE = "tokens_per_second"
_LONGEST_LABEL = 60
"""Characters of a name in the legend: the end tells runs apart."""


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder says of it; the recipe and the manifest are empty where the folder lacks them."""

    folder: Path
    records: list[Record]
    recipe: Mapping[str, Any]
    manifest: Manifest | None

    @property
    def name(self) -> str:
        """As on the command line."""
        return str(self.folder)

    @property
    def last_validation(self) -> Record | None:
        """The last record with a validation loss."""
        return next((record for record in reversed(self.records) if record.get(VALID_LOSS) is not None), None)


def read_run(folder: Path) -> RunFacts:
    """The facts of one run.

    Raises:
        ConfigError: the folder holds no metrics of a training run.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {what}; give a run's training.output_dir")
    records = read_metrics(folder / METRICS_FILE, refuse_damaged=True)
    if not any(TRAIN_LOSS in record for record in records):
        raise ConfigError(f"{folder} holds no {METRICS_FILE} with training steps; give a run's training.output_dir")
    try:
        recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recipe = {}
    return RunFacts(folder, records, recipe if isinstance(recipe, dict) else {}, _newest_manifest(folder))


def html_report(runs: Sequence[RunFacts]) -> str:
    """The page: summary, curves, what differs, environment and recipes."""
    sections = [
        _summary(runs),
        "".join(f"<p>{html.escape(line)}</p>" for run in runs if len(runs) == 1 for line in _verdict_lines(run)),
        "<h2>Losses</h2>" + _curves(runs, _loss_names(runs)),
        "<h2>Speed, gradient and learning rate</h2>" + _curves(runs, list(_MORE_CURVES)),
        _times(runs),
        _differences(runs),
        _environment(runs),
        *(_recipe(run) for run in runs if run.recipe),
    ]
    title = " and ".join(str(run.recipe.get("name", run.name)) for run in runs)
    template = resources.files("megadeberta.observability").joinpath("report.html").read_text(encoding="utf-8")
    values = {"title": html.escape(title), "body": "\n".join(sections), "version": megadeberta.__version__}
    return Template(template).substitute(values)


def different_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Settings in which the recipes differ, with the value of each run."""
    flat = [dict(flat_settings(run.recipe)) for run in runs]
    keys = sorted({key for values in flat for key in values})
    rows = [(key, [json.dumps(values.get(key)) for values in flat]) for key in keys]
    return [(key, shown) for key, shown in rows if len(set(shown)) > 1]


def summary_rows(runs: Sequence[RunFacts]) -> tuple[list[str], list[list[str]]]:
    """A line per run: steps, its last validation losses, and the median of its speed."""
    lasts = [run.last_validation or {} for run in runs]
    names = [name for name in _loss_names(runs) if any(f"valid_{name}" in last for last in lasts)]
    head = ["run", "steps", "validation loss", *(TERMS[name].title for name in names), "tokens per second"]
    rows = []
    for run, last in zip(runs, lasts, strict=True):
        rates = [rate for _, rate in points(run.records, _RATE)]
        numbers = [last.get(VALID_LOSS), *(last.get(f"valid_{name}") for name in names)]
        losses = ["-" if value is None else f"{value:.3f}" for value in numbers]
        rate = f"{statistics.median(rates):,.0f}" if rates else "-"
        rows.append([run.name, f"{max(record['step'] for record in run.records):,}", *losses, rate])
    return head, rows


def _newest_manifest(folder: Path) -> Manifest | None:
    root = folder / CHECKPOINTS_FOLDER
    for name in list_checkpoints(root):
        try:
            return read_manifest(root / str(name))
        except CheckpointError:
            continue
    return None


def _loss_names(runs: Sequence[RunFacts]) -> list[str]:
    return [name for name, entry in TERMS.items() if entry.is_loss and any(points(r.records, name) for r in runs)]


def _verdict_lines(run: RunFacts) -> list[str]:
    return verdicts(run.last_validation) if run.last_validation else []


def _summary(runs: Sequence[RunFacts]) -> str:
    return _table(*summary_rows(runs))


def _curves(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    """One panel per name, the runs in one colour each: training smoothed, validation with points, baselines dashed."""
    shown = [name for name in names if any(points(run.records, name) for run in runs)]
    if not shown:
        return "<p>No such values in the log.</p>"
    with _plain_text():
        return _drawn(runs, shown)


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """Names are drawn as they are: a dollar begins no formula, and the browser has the letters that our font lacks."""
    with rc_context({"text.parse_math": False, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _drawn(runs: Sequence[RunFacts], shown: Sequence[str]) -> str:
    figure = Figure(figsize=(8.5, 3.4 * len(shown)), layout="constrained")
    FigureCanvasSVG(figure)
    for number, name in enumerate(shown, start=1):
        panel = figure.add_subplot(len(shown), 1, number)
        for run, colour in zip(runs, _COLOURS * len(runs), strict=False):
            label = _in_legend(run.name) if len(runs) > 1 else None
            _draw(panel, run, name, colour, label)
        entry = TERMS.get(name)
        panel.set(xlabel="optimizer step", ylabel=f"{entry.title} ({entry.unit})" if entry else _MORE_CURVES[name])
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False)
    image = io.StringIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()[image.getvalue().index("<svg") :]


def _in_legend(name: str) -> str:
    """With room for the curves; matplotlib leaves out what begins with a line below."""
    short = name if len(name) <= _LONGEST_LABEL else f"…{name[-_LONGEST_LABEL:]}"
    return f"./{short}" if short.startswith("_") else short


def _draw(panel: Any, run: RunFacts, name: str, colour: str, label: str | None) -> None:
    train, valid = points(run.records, name), points(run.records, f"valid_{name}")
    if train:
        steps, values = zip(*train, strict=True)
        panel.plot(
            steps, smooth(values), color=colour, linewidth=1.3, label=label or ("training" if name in TERMS else None)
        )
    if valid:
        steps, values = zip(*valid, strict=True)
        panel.plot(steps, values, color=colour, marker="o", markersize=3, label=None if label else "validation")
    last = run.last_validation
    if last and name in TERMS:
        means = {key.removeprefix("valid_"): value for key, value in last.items()}
        baseline = baselines(means, last.get("unigram_cross_entropy")).get(name)
        if baseline is not None:
            text = None if label else f"{TERMS[name].baseline_title} {baseline:.3f}"
            panel.axhline(baseline, color=colour if label else "gray", linestyle="--", linewidth=1, label=text)


def time_rows(runs: Sequence[RunFacts]) -> list[list[str]]:
    """A line per phase, validations and saves included: the median of its seconds in each run."""
    names = {key: None for run in runs for record in run.records for key in record if key.startswith(TIME_PREFIX)}
    rows = []
    for name in names:
        found = [[value for _, value in points(run.records, name)] for run in runs]
        rows.append([name.removeprefix(TIME_PREFIX), *(f"{statistics.median(v):.3g}" if v else "-" for v in found)])
    return rows


def _times(runs: Sequence[RunFacts]) -> str:
    rows = time_rows(runs)
    return "<h2>Median seconds</h2>" + _table(["phase", *(run.name for run in runs)], rows) if rows else ""


def _differences(runs: Sequence[RunFacts]) -> str:
    if len(runs) < 2:
        return ""
    rows = [[key, *values] for key, values in different_settings(runs)]
    return "<h2>Settings that differ</h2>" + _table(["setting", *(run.name for run in runs)], rows)


def _environment(runs: Sequence[RunFacts]) -> str:
    facts: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        record = run.manifest.run if run.manifest else None
        values: dict[str, Any] = {}
        if run.manifest and record:
            values = {"newest checkpoint": f"step {run.manifest.step}, {run.manifest.created}"}
            values |= {"hardware": record.hardware or "-", **record.versions, **record.world.model_dump()}
        for key, value in values.items():
            facts.setdefault(key, ["-"] * len(runs))[number] = str(value)
    if not facts:
        return ""
    return "<h2>Environment</h2>" + _table(["", *(run.name for run in runs)], [[k, *v] for k, v in facts.items()])


def _recipe(run: RunFacts) -> str:
    text = html.escape(json.dumps(run.recipe, indent=2))
    return f"<details><summary>Recipe of {html.escape(run.name)}</summary><pre>{text}</pre></details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
