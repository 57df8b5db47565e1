"""`megadeberta finetune`. Torch is imported after the arguments and the data."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from megadeberta.config.plugins import PluginOption
from megadeberta.config.terminal import fitting_table, say, table_console
from megadeberta.config.waiting import Waiting
from megadeberta.convert.published_folder import check_free
from megadeberta.errors import ConfigError
from megadeberta.finetune import options
from megadeberta.finetune.packages import check_packages
from megadeberta.finetune.settings import Point, Settings, default_lr, grid, parse_axes
from megadeberta.finetune.sift_settings import SiftSettings
from megadeberta.finetune.start_place import find_start
from megadeberta.finetune.task import Task
from megadeberta.finetune.tasks.table import TASKS, find_task

if TYPE_CHECKING:
    from megadeberta.finetune.results import Results
    from megadeberta.finetune.source import Start


def finetune(
    task: options.TaskName,
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = None,
    epochs: options.Epochs = None,
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    micro_batch: options.MicroBatch = None,
    warmup: options.Warmup = None,
    dropout: options.Dropout = None,
    length: options.Length = None,
    seeds: options.Seeds = 1,
    seed: options.Seed = 1,
    axes: options.Grid = None,
    sift: options.IsSift = False,
    sift_weight: options.SiftWeight = SiftSettings.weight,
    sift_start: options.SiftStart = SiftSettings.start,
    sift_step: options.SiftStep = SiftSettings.step,
    attention: options.Attention = Settings.attention,
    precision: options.Precision = "fp32",
    zero: options.Zero = 0,
    column: options.Column = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    plugin: PluginOption = None,
) -> None:
    """Fine-tune on labelled data: GLUE, SuperGLUE, SQuAD, RACE, SWAG, CoNLL-2003, or tables of your own.

    Example: megadeberta finetune sst-2 --data glue_data --model exported --seeds 3
    """
    if task == "list":
        return _list_tasks()
    of_sift = SiftSettings(sift_weight, sift_start, sift_step) if sift else None
    of_runs: dict[str, Any] = {"seeds": tuple(range(seed, seed + seeds)), "sift": of_sift, "zero": zero}
    of_runs |= {"micro_batch": micro_batch, "precision": precision, "attention": attention}
    of_runs |= {"epochs": epochs, "length": length}
    of_point = {"lr": lr, "batch_size": batch_size, "warmup": warmup, "dropout": dropout}
    where = _Where(data, model, output, overwrite, tuple(column or ()))
    return _finetune(find_task(task), where, of_runs, of_point, axes=axes, as_json=as_json)


@dataclass(frozen=True)
class _Where:
    """What is read and written."""

    data: Path | None
    model: Path | None
    output: Path | None
    overwrite: bool
    columns: tuple[str, ...]


def _finetune(
    task: Task,
    where: _Where,
    of_runs: dict[str, Any],
    of_point: dict[str, Any],
    *,
    axes: str | None,
    as_json: bool,
) -> None:
    """
    Args:
        of_runs: fields of ``Settings``; None: of the task.
        of_point: fields of ``Point``; None: of the task and the model.
    """
    data, model = where.data, where.model
    if data is None or model is None:
        raise ConfigError(f"finetune {task.name}: give {'--data' if data is None else '--model'}, as --help explains")
    names = parse_axes(axes) if axes is not None else ()
    check_packages()
    splits = task.read(_existing(data), _columns(task, where.columns))
    find_start(model)
    target = where.output or Path("tuned") / task.name
    check_free(target, overwrite=where.overwrite)
    with Waiting(f"loading {model}"):
        from megadeberta.finetune.run import finetune as finetune_all
        from megadeberta.finetune.source import open_start
    with open_start(model) as start:
        longest = min(task.defaults.length, start.longest() or task.defaults.length)
        settings = Settings(
            **of_runs | {"epochs": of_runs["epochs"] or task.defaults.epochs, "length": of_runs["length"] or longest}
        )
        points = grid(_point(task, start, **of_point), names, hidden_size=start.hidden_size)
        runs: dict[str, Any] = {"points": points, "settings": settings, "data": data, "overwrite": where.overwrite}
        results = finetune_all(task, splits, start, target, **runs)
    _show(results, target, as_json=as_json)


def _point(
    task: Task,
    start: "Start",
    *,
    lr: float | None,
    batch_size: int | None,
    warmup: int | None,
    dropout: float | None,
) -> Point:
    """As asked, else as the task and the width of the model say."""
    from megadeberta.finetune.kinds.table import KINDS

    has_dropout = KINDS[task.kind].dropout_setting is not None
    if dropout is not None and not has_dropout:
        raise ConfigError(f"--dropout {dropout:g}: the head of {task.name} has no dropout of its own; leave it out")
    of_task = task.defaults.dropout if has_dropout else None
    return Point(
        lr=default_lr(start.hidden_size) if lr is None else lr,
        batch_size=batch_size or task.defaults.batch_size,
        warmup=task.defaults.warmup if warmup is None else warmup,
        dropout=of_task if dropout is None else dropout,
    )


def _columns(task: Task, given: Sequence[str]) -> dict[str, str]:
    if given and not task.takes_columns:
        raise ConfigError(f"--column is for tables of your own; {task.name} is read as published")
    pairs = [text.partition("=") for text in given]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise ConfigError(f"--column {ours}{equals}{theirs}: give NAME=COLUMN, such as text=review")
    return {ours: theirs for ours, _, theirs in pairs}


def _existing(data: Path) -> Path:
    if not data.exists():
        raise ConfigError(f"--data {data}: no such file or folder")
    return data


def _list_tasks() -> None:
    table = Table.grid(padding=(0, 2))
    for name, found in TASKS.items():
        table.add_row(Text(name, no_wrap=True), Text(found.summary), Text(found.main, no_wrap=True))
    table_console().print(table)


def _show(results: "Results", target: Path, *, as_json: bool) -> None:
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        typer.echo(json.dumps(results.as_json(), indent=2))
        return
    header, lines = results.table()
    console, rows = table_console(), [dict(zip(header, line, strict=True)) for line in lines]
    narrow = [name for name in header if name not in ("warm-up", "dropout", "std", "epoch", "s")]
    console.print(fitting_table(console, rows, choices=(header, narrow)))
    kept = results.kept()
    for name, metrics in kept.metrics.items():
        say(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
    say(f"{target} holds seed {kept.seed}, epoch {kept.best_epoch:g}: load it with transformers")
