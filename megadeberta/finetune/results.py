"""What fine-tuning found: every run, median and spread of each point, and which run was kept. Never torch."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.finetune.rows import Prediction, Row
from megadeberta.finetune.settings import Point, Settings
from megadeberta.finetune.task import Task
from megadeberta.storage import write_file

Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One seed at one point."""

    seed: int
    epochs: Sequence[Mapping[str, Any]]
    """Loss, metrics of the first development set and seconds of each."""
    best_epoch: float
    metrics: Mapping[str, Metrics]
    """Of the best epoch, by set; labelled ones alone."""
    seconds: float


@dataclass(frozen=True)
class PointRuns:
    """All seeds of a point."""

    point: Point
    runs: Sequence[Run]

    def values(self, main: str) -> list[float]:
        """The main metric on the first development set, by seed."""
        return [next(iter(run.metrics.values()))[main] for run in self.runs]

    def summary(self, main: str) -> Metrics:
        """Median over the seeds, the smallest, the largest, and the standard deviation of a sample."""
        values = self.values(main)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"median": statistics.median(values), "min": min(values), "max": max(values), "std": deviation}


@dataclass(frozen=True)
class Results:
    """Of one command."""

    task: Task
    model: str
    settings: Settings
    rows: Mapping[str, int]
    """Labelled examples by set."""
    points: Sequence[PointRuns]

    def best(self) -> PointRuns:
        """The point with the highest median, the first of equals."""
        return max(self.points, key=lambda found: found.summary(self.task.main)["median"])

    def kept(self) -> Run:
        """Its best seed, whose weights and predictions are in the folder."""
        best = self.best()
        values = best.values(self.task.main)
        return best.runs[values.index(max(values))]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        main = self.task.main
        points = [
            {**dataclasses.asdict(p.point), main: p.summary(main), "runs": [dataclasses.asdict(run) for run in p.runs]}
            for p in self.points
        ]
        chosen = {**dataclasses.asdict(self.best().point), "seed": self.kept().seed, "epoch": self.kept().best_epoch}
        return {
            "task": self.task.name,
            "model": self.model,
            "metric": main,
            "settings": dataclasses.asdict(self.settings),
            "rows": dict(self.rows),
            "kept": {**chosen, "metrics": dict(self.kept().metrics)},
            "points": points,
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and one line per point, the best marked."""
        header = (
            "lr",
            "batch",
            "warm-up",
            "dropout",
            "seeds",
            f"median {self.task.main}",
            "min",
            "max",
            "std",
            "epoch",
            "s",
        )
        lines = []
        for found in self.points:
            summary, point = found.summary(self.task.main), found.point
            lines.append(
                (
                    f"{point.lr:g}",
                    str(point.batch_size),
                    str(point.warmup),
                    "-" if point.dropout is None else f"{point.dropout:g}",
                    str(len(found.runs)),
                    *(f"{summary[name]:.4f}" for name in ("median", "min", "max", "std")),
                    f"{statistics.median(run.best_epoch for run in found.runs):g}",
                    f"{sum(run.seconds for run in found.runs):.0f}",
                )
            )
        return header, lines

    def as_markdown(self) -> str:
        """The table, and the metrics of the run that was kept."""
        header, lines = self.table()
        rows = [header, ("---",) * len(header), *lines]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        kept = [
            f"# {self.task.name}\n",
            f"{self.task.summary}\n",
            f"Model: {self.model}. Epoch: of the best, the median over seeds.\n",
        ]
        kept.append(f"{table}\n\nKept is seed {self.kept().seed}, epoch {self.kept().best_epoch:g}:\n")
        kept.append("| set | metric | value |\n| --- | --- | --- |")
        kept += [
            f"| {of} | {name} | {v:.4f} |" for of, found in self.kept().metrics.items() for name, v in found.items()
        ]
        return "\n".join(kept) + "\n"


def write_results(
    folder: Path, results: Results, predictions: Mapping[str, tuple[Sequence[Row], Sequence[Prediction]]]
) -> None:
    """``results.json``, ``results.md``, ``predictions-SET.jsonl``, and of test sets the file for the leaderboard."""
    write_file(folder / "results.json", f"{json.dumps(results.as_json(), indent=1)}\n".encode())
    write_file(folder / "results.md", results.as_markdown().encode())
    for name, (rows, found) in predictions.items():
        lines = [{"id": row.uid, "prediction": p.value, "scores": p.scores} for row, p in zip(rows, found, strict=True)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_file(folder / f"predictions-{name}.jsonl", text.encode())
        submits_dev = results.task.kind in ("spans", "tokens")
        if results.task.submission is not None and (submits_dev or name.startswith("test")):
            file, content = results.task.submission(name, rows, found)
            write_file(folder / file, content.encode())
