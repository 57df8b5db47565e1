"""Checkpoints of one run: what goes in, which run it belongs to, and where to go on."""

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import deepspeed

import megadeberta
from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, write_new_file
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER
from megadeberta.checkpoint.manifest import Origin, RunRecord, WorldLayout
from megadeberta.checkpoint.resume import ResumePoint, begin_from, find_resumable
from megadeberta.checkpoint.stages import BackgroundSave, SaveStages, save_at_once
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.config.blend import BlendSegment
from megadeberta.config.redact import redact
from megadeberta.config.run import RunConfig
from megadeberta.config.set_files import tokenizer_name
from megadeberta.config.spikes import PassedOver, sample_after
from megadeberta.engine.device_name import device_name
from megadeberta.engine.spikes import LossSpikeError, SpikeWatch
from megadeberta.engine.state.host_copy import HostCopy
from megadeberta.engine.state.local_parameters import LocalParameter
from megadeberta.engine.state.optimizer_state import OptimizerState
from megadeberta.engine.state.save_load import (
    find_not_finite,
    load_checkpoint,
    refuse_unsaved_state,
    save_stages,
)
from megadeberta.errors import CheckpointError, DivergenceError
from megadeberta.topology import Topology

_AFTER_A_SPIKE = "Lower optimizer.lr, lengthen the warm-up or raise numerics.spike_factor, and start again"

ContinueBlend = Callable[[Sequence[BlendSegment], int], tuple[BlendSegment, ...]]


def _no_blend(saved: Sequence[BlendSegment], sample: int) -> tuple[BlendSegment, ...]:
    return ()


class RunCheckpoints:
    """Saves and resumes the engine of one run. All methods are collective over all ranks.

    A checkpoint holds no trace of the layout but in its manifest, and the tokenizer beside the tensors: resuming and
    exporting need neither the layout that the run had nor, for exporting, DeepSpeed.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        config: RunConfig,
        *,
        run: RunRecord,
        collectives: Collectives,
        parameters: Sequence[LocalParameter],
        continue_blend: ContinueBlend = _no_blend,
    ) -> None:
        """
        Args:
            run: see ``run_record``.
            parameters: what this rank holds of every parameter.
            continue_blend: the segments of the training data's blend from those of the checkpoint, none at the start,
                and the first sample to come; the same on every rank.
        """
        refuse_unsaved_state(engine)
        self._state = OptimizerState(engine, parameters)
        self._config = config
        self._collectives = collectives
        root, keep = config.training.output_dir / CHECKPOINTS_FOLDER, config.checkpoint
        self._store = CheckpointStore(
            root, collectives=collectives, keep_last=keep.keep_last, keep_every=keep.keep_every
        )
        self._run = run
        self._saved_step = -1
        self._beside: BackgroundSave | None = None
        self._copy = HostCopy()
        self._saved_at = time.monotonic()
        self.tell: Callable[[BackgroundSave], None] = lambda save: None
        """Is told of each save beside training that is over."""
        self.resumed: ResumePoint | None = None
        """The checkpoint that the run went on from, its own or that of ``training.continue_from``; known after
        ``resume``."""
        self.begins = True
        """Whether it had none of its own; known after ``resume``."""
        self._continue_blend = continue_blend
        self.spikes = SpikeWatch(config.numerics)
        """Of the losses of this run, and what was passed over; as the checkpoint has it after ``resume``."""

    @property
    def blend(self) -> tuple[BlendSegment, ...]:
        """Of the training data, from the first sample on; known after ``resume``."""
        return self._run.blend

    @property
    def origin(self) -> Origin | None:
        """The checkpoint of another run that this one began with, if any; known after ``resume``."""
        return self._run.origin

    def resume(self, found: ResumePoint | None) -> int:
        """Load what was found, if anything was, else the checkpoint of ``training.continue_from``; the number of
        optimizer steps done.

        Args:
            found: by ``find_own_checkpoint``. Where it holds values that are not finite, an older one is taken.

        Raises:
            CheckpointError: no checkpoint is sound, or one cannot be read.
            ConfigError: the blend of the training data cannot go on as the recipe asks.
        """
        point = self._load_finite(found)
        self.begins = point is None
        source = self._config.training.continue_from
        origin = None if point is None else point.manifest.run.origin
        if point is None and source is not None:
            point, origin = self._begin_from(source)
        saved, sample = () if point is None else point.manifest.run.blend, 0
        if point is not None:
            self.spikes.go_to(point.step, point.manifest.run.spikes)
            sample = self._first_sample(point.step)
        self._run = self._run.model_copy(update={"blend": self._continue_blend(saved, sample), "origin": origin})
        self.resumed = point
        if point is None:
            return 0
        if not self.begins:
            self._store.damaged = point.damaged
            self._saved_step = point.step
        return point.step

    def _begin_from(self, folder: Path) -> tuple[ResumePoint, Origin]:
        ranks = self._collectives
        point, origin = begin_from(folder, collectives=ranks, run=self._run)
        load_checkpoint(self._state, point, collectives=ranks)
        if bad := find_not_finite(self._state, ranks):
            raise CheckpointError(f"training.continue_from={folder}: {bad}; give an older checkpoint")
        return point, origin

    def _load_finite(self, point: ResumePoint | None) -> ResumePoint | None:
        """Load ``point``, or the newest one before it that is sound and holds finite values alone."""
        rejected: dict[str, str] = {}
        ranks = self._collectives
        while point is not None:
            load_checkpoint(self._state, point, collectives=ranks)
            bad = find_not_finite(self._state, ranks)
            if not bad:
                return point
            rejected[point.folder.name] = f"{point.folder}: {bad}"
            point = find_own_checkpoint(self._config, run=self._run, collectives=ranks, rejected=rejected)
        return None

    def go_back(self, spike: LossSpikeError) -> tuple[int, tuple[PassedOver, ...]]:
        """Load the newest sound checkpoint, and pass over the samples since then; the steps done, and all windows that
        are passed over behind it. One that is being written is waited for, so that the newest does not depend on disks.

        Raises:
            StorageError: of that one, the third failure in a row.
            DivergenceError: there is none, or as many windows as the limit have been passed over behind it.
            CheckpointError: no checkpoint is sound, or one cannot be read.
        """
        self.finish()
        point = self._load_finite(find_own_checkpoint(self._config, run=self._run, collectives=self._collectives))
        if point is None:
            raise DivergenceError(f"{spike}; there is no checkpoint yet to go back to. {_AFTER_A_SPIKE}")
        saved, windows = point.manifest.run.spikes, self.spikes.windows
        behind = windows[len(saved.windows) if saved else 0 :]
        if len(behind) >= self.spikes.limit:
            raise DivergenceError(
                f"{spike}, and {len(behind)} windows of samples have been passed over behind {point.folder.name}. "
                f"{_AFTER_A_SPIKE}"
            )
        first, stop = self._first_sample(point.step), self.samples_of(spike.step).stop
        found = PassedOver(first_sample=first, stop_sample=stop, step=spike.step, loss=spike.loss, median=spike.median)
        self.spikes.go_to(point.step, saved, more=(*behind, found))
        self._store.damaged, self._saved_step = point.damaged, point.step
        self._saved_at = time.monotonic()
        return point.step, (*behind, found)

    def samples_of(self, step: int) -> range:
        """The global samples of step ``step``, counted from 1."""
        first = self._first_sample(step - 1)
        return range(first, first + self._config.batches.at(step - 1))

    def _first_sample(self, step: int) -> int:
        """Of the step after ``step``."""
        return sample_after(self._config.batches.samples(step), self.spikes.windows)

    def save(self, step: int, *, required: bool) -> bool:
        """Commit a checkpoint of ``step`` optimizer steps, unless that step is saved already; whether it is there now.
        One that is being written is waited for first.

        Raises:
            StorageError: it could not be written and is ``required``, or it was the third failure in a row.
            DivergenceError: a weight or a moment is not finite.
        """
        self.finish()
        if step == self._saved_step:
            return True
        if save_at_once(self._stages(step, required=required)) is not None:
            self._saved_step = step
        self._saved_at = time.monotonic()
        return step == self._saved_step

    def save_beside(self, step: int) -> None:
        """Begin a checkpoint of ``step`` optimizer steps that is written while training goes on: the state is copied
        now, and committed by the calls of ``advance`` or ``finish`` that follow. One that is being written is waited
        for first.

        Raises:
            StorageError: of the one before, the third failure in a row.
            DivergenceError: a weight or a moment is not finite.
        """
        self.finish()
        if step != self._saved_step:
            begin = partial(self._stages, step, copy=self._copy)
            self._beside = BackgroundSave(step, begin, drop=self._copy.drop)
        self._saved_at = time.monotonic()

    @property
    def is_due_by_time(self) -> bool:
        """Whether ``checkpoint.minutes`` have passed since the last one; only rank 0 has a clock. No collective."""
        minutes = self._config.checkpoint.minutes
        if minutes is None or self._collectives.rank != 0:
            return False
        return time.monotonic() - self._saved_at >= 60 * minutes

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part of a checkpoint is being written at this moment; no collective."""
        return self._beside is not None and self._beside.is_busy

    def advance(self) -> bool:
        """Take the checkpoint that is written beside training one stage further; False if there is none. Where no rank
        ``is_writing`` this waits for no file.

        Raises:
            StorageError: it was the third failure in a row.
        """
        save = self._beside
        if save is None:
            return False
        try:
            save.advance()
        finally:
            if save.is_over:
                self._beside = None
        if save.is_over:
            if save.committed is not None:
                self._saved_step = save.step
            self.tell(save)
        return True

    def finish(self) -> None:
        """Wait until nothing is being written any more.

        Raises:
            StorageError: it was the third failure in a row.
        """
        while self._beside is not None:
            self.advance()

    def __enter__(self) -> Self:
        self._saved_at = time.monotonic()  # what came before the first step does not count
        return self

    def __exit__(self, *exception: object) -> None:
        """What is still being written is given up: only a run that an error ends gets here with such a one."""
        if self._beside is not None:
            self._beside.abandon()
            self._beside = None

    def _stages(self, step: int, *, required: bool = False, copy: HostCopy | None = None) -> SaveStages:
        return save_stages(
            self._state,
            self._store,
            step,
            run=self._run.model_copy(update={"spikes": self.spikes.record(step)}),
            collectives=self._collectives,
            required=required,
            write_more=self._write_tokenizer,
            copy=copy,
        )

    def _write_tokenizer(self, folder: Path) -> dict[str, Digest]:
        if self._collectives.rank != 0:
            return {}
        content = self._config.data.tokenizer.read_bytes()
        name = tokenizer_name(content)
        return {name: write_new_file(folder / name, content)}


def find_own_checkpoint(
    config: RunConfig, *, run: RunRecord, collectives: Collectives, rejected: Mapping[str, str] | None = None
) -> ResumePoint | None:
    """The newest sound checkpoint of the run; None where it has none at all. Needs no model. Collective over all ranks.

    Args:
        rejected: names of those that are not to be tried, and why.

    Raises:
        CheckpointError: there are checkpoints but no sound one, or it is of another run; or there is none and
            checkpoint.resume is "required".
    """
    root = config.training.output_dir / CHECKPOINTS_FOLDER
    required = config.checkpoint.resume == "required"
    return find_resumable(root, collectives=collectives, run=run, required=required, rejected=rejected or {})


def run_record(config: RunConfig, *, world_size: int, data_fingerprint: Mapping[str, str]) -> RunRecord:
    """What a checkpoint must share with the run that resumes it.

    The layout, the precision, the micro batch, the length of the run, the learning rate and the schedule may change
    between stop and resume; the model, the data and what decides the order and the masks of the samples may not.
    """
    settings = config.engine
    topology = Topology.of_world(world_size, pipeline=config.parallel.pipeline, tensor=config.parallel.tensor)
    world = WorldLayout(
        world_size=world_size,
        tensor_parallel=topology.tensor,
        pipeline=topology.pipeline,
        data_parallel=topology.data,
        zero_stage=settings.zero_stage,
        precision=settings.precision,
    )
    fixed = _fixed_settings(config, data_fingerprint)
    return RunRecord(
        world=world,
        versions={
            "megadeberta": megadeberta.__version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "deepspeed")},
        },
        hardware=device_name(),
        fingerprint={f"{section}.{key}": str(value) for section, keys in fixed.items() for key, value in keys.items()},
        config=redact(config.model_dump(mode="json")),
    )


def _fixed_settings(config: RunConfig, data_fingerprint: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings of the fingerprint by section."""
    batch_stages = [stage.model_dump() for stage in config.training.batch_stages]
    return {
        "model": config.model.model_dump(mode="json"),
        "objective": config.objective.model_dump(mode="json", exclude=_settings_without_value(config)),
        "data": {
            "sequence_length": config.data.sequence_length,
            "packing": config.data.packing,
            **data_fingerprint,
        },
        # As above: those of AdamW have none.
        "optimizer": {} if config.optimizer.name == "adamw" else {"name": config.optimizer.name},
        "training": {"seed": config.training.seed} | ({"batch_stages": batch_stages} if batch_stages else {}),
        "deepspeed": {"train_batch_size": config.engine.global_batch},
    }


def _settings_without_value(config: RunConfig) -> dict[str, Any]:
    """Settings of the objective that checkpoints of before there were such settings do not have."""
    objective, rtd = config.objective, config.objective.rtd
    optional = ("options", "mask_rate_schedule")
    left_out: dict[str, Any] = {name: True for name in optional if not getattr(objective, name)}
    return left_out | ({} if rtd.generator_hidden_size else {"rtd": {"generator_hidden_size"}})
