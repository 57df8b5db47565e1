"""``megadeberta finetune``: rows, model and settings to a tuned folder with its results."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import transformers
from torch import Tensor

from megadeberta.convert.published_folder import publish_folder
from megadeberta.convert.quiet import quiet_transformers
from megadeberta.finetune.kinds.kind import Feature, Kind
from megadeberta.finetune.kinds.table import KINDS
from megadeberta.finetune.loop import BestEpoch, Trainer, build_trainer, divide_batch, world_size
from megadeberta.finetune.model import check_length, check_saved, load_model, load_tokenizer
from megadeberta.finetune.packages import check_packages
from megadeberta.finetune.progress import Progress
from megadeberta.finetune.results import Metrics, PointRuns, Results, Run, write_results
from megadeberta.finetune.rows import Prediction, Row, Splits
from megadeberta.finetune.settings import Point, Settings, within_run
from megadeberta.finetune.source import Start
from megadeberta.finetune.task import Task, is_labelled, labels_of, score

log = logging.getLogger(__name__)

_Predictions = dict[str, tuple[Sequence[Row], Sequence[Prediction]]]


@dataclass
class Job:
    """What all runs of a command read."""

    task: Task
    start: Start
    splits: Splits
    labels: tuple[str, ...]
    settings: Settings
    tokenizer: Any
    features: Mapping[str, list[Feature]]
    """By set; of training, under the name "training"."""

    @property
    def kind(self) -> Kind:
        """What rows and outputs mean."""
        return KINDS[self.task.kind]

    @property
    def scored(self) -> dict[str, Sequence[Row]]:
        """Development and test sets."""
        return {**self.splits.dev, **self.splits.test}


@dataclass
class _Kept:
    """The best run so far: weights and predictions."""

    value: float = float("-inf")
    weights: dict[str, Tensor] = field(default_factory=dict)
    predictions: _Predictions = field(default_factory=dict)
    model: Any = None


def finetune(
    task: Task,
    splits: Splits,
    start: Start,
    out: Path,
    *,
    points: Sequence[Point],
    settings: Settings,
    data: Path,
    overwrite: bool = False,
) -> Results:
    """Fine-tune at every point with every seed, and write the best into ``out``, which appears when all is done.

    Under torchrun every rank calls it, and rank 0 writes.

    Args:
        data: where ``splits`` were read, for messages.

    Raises:
        DataError, ConfigError, CheckpointError: rows, settings or model do not fit; nothing has been trained yet.
        DivergenceError: the loss is not finite.
        StorageError: the file system refused a write.
    """
    check_packages()
    job = _prepare(task, splits, start, settings, data)
    points = within_run(points, sequences=len(job.features["training"]), epochs=settings.epochs)
    for point in points:
        divide_batch(point.batch_size, settings.micro_batch, world_size())
    found: list[Results] = []

    def fill(folder: Path) -> None:
        results, kept = _run_all(job, points)
        found.append(results)
        _save(folder, job, kept)
        write_results(folder, results, kept.predictions)

    if _rank() == 0:
        publish_folder(out, fill, overwrite=overwrite)
        return found[0]
    return _run_all(job, points)[0]


def _prepare(task: Task, splits: Splits, start: Start, settings: Settings, data: Path) -> Job:
    labels = labels_of(task, splits, data)
    check_length(start, settings.length)
    tokenizer = load_tokenizer(start)
    sets: dict[str, Sequence[Row]] = {"training": splits.train, **splits.dev, **splits.test}
    encode = partial(KINDS[task.kind].encode, tokenizer=tokenizer, labels=labels, length=settings.length)
    features = {name: encode(rows) for name, rows in sets.items()}
    log.info("%s: %s", task.name, ", ".join(f"{len(rows)} {name} rows" for name, rows in sets.items()))
    return Job(task, start, splits, labels, settings, tokenizer, features)


def _run_all(job: Job, points: Sequence[Point]) -> tuple[Results, _Kept]:
    kept, found = _Kept(), []
    for point in points:
        of_point, runs = _Kept(), []
        for seed in job.settings.seeds:
            runs.append(_run(job, point, seed, of_point))
        point_runs = PointRuns(point, runs)
        found.append(point_runs)
        median = point_runs.summary(job.task.main)["median"]
        if median > kept.value:
            kept = of_point
            kept.value = median
    rows = {"training": len(job.splits.train), **{name: len(of) for name, of in job.scored.items()}}
    return Results(job.task, job.start.name, job.settings, rows, found), kept


def _run(job: Job, point: Point, seed: int, kept: _Kept) -> Run:
    """Train with one seed; ``kept`` gets the weights and predictions if they are better than those in it."""
    began = time.monotonic()
    transformers.set_seed(seed)
    model = load_model(job.start, job.kind, job.labels, point=point, settings=job.settings)
    name = f"{job.task.name} seed {seed}"
    callback = BestEpoch(job.task.main, Progress(name, job.settings.epochs, quiet=_rank() != 0))
    dev = next(iter(job.splits.dev))
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        trainer = build_trainer(
            model,
            job.kind,
            job.kind.collate(job.tokenizer),
            (job.features["training"], job.features[dev]),
            lambda outputs: _score(job, dev, outputs),
            callback,
            point=point,
            settings=job.settings,
            seed=seed,
            scratch=Path(scratch),
        )
        try:
            trainer.train()
        finally:
            callback.progress.stop()
            if trainer.sift is not None:
                trainer.sift.remove()
        model.load_state_dict(callback.weights)
        predictions = _predict_all(job, trainer)
    metrics = {name: score(job.task, rows, found) for name, (rows, found) in predictions.items() if is_labelled(rows)}
    value = metrics[dev][job.task.main]
    if value > kept.value:
        kept.value, kept.weights, kept.predictions, kept.model = value, callback.weights, predictions, model
    epochs = [vars(epoch) for epoch in callback.epochs]
    return Run(seed, epochs, callback.epochs[callback.best].number, metrics, time.monotonic() - began)


def _score(job: Job, name: str, outputs: Any) -> Metrics:
    rows = job.scored[name]
    found = job.kind.decode(outputs, job.features[name], rows, labels=job.labels)
    return score(job.task, rows, found)


def _predict_all(job: Job, trainer: Trainer) -> _Predictions:
    """The predictions of all sets. Every rank gets those of all ranks."""
    trainer.compute_metrics = None
    found: _Predictions = {}
    for name, rows in job.scored.items():
        outputs = trainer.predict(cast(Any, job.features[name])).predictions
        found[name] = (rows, job.kind.decode(outputs, job.features[name], rows, labels=job.labels))
    return found


def _save(folder: Path, job: Job, kept: _Kept) -> None:
    """The model and its tokenizer, loaded again and compared."""
    kept.model.load_state_dict(kept.weights)
    with quiet_transformers():
        kept.model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(job.start.folder, local_files_only=True).save_pretrained(folder)
    if (job.start.folder / "spm.model").is_file():
        shutil.copyfile(job.start.folder / "spm.model", folder / "spm.model")
    features = next(iter(job.features.values()))[:4]
    device = next(kept.model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in job.kind.collate(job.tokenizer)(features).items()}
    check_saved(folder, job.kind, kept.model, batch)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
