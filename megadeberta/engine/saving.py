"""Checkpoints of one run: what goes in, which run it belongs to, and where to go on."""

import errno
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import deepspeed
import safetensors.torch
from safetensors import SafetensorError

import megadeberta
from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, hash_file
from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER
from megadeberta.checkpoint.manifest import RunRecord, WorldLayout
from megadeberta.checkpoint.resume import find_resumable
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.config.deepspeed_block import is_enabled, zero_stage
from megadeberta.config.run import RunConfig
from megadeberta.engine.checkpoint_engine import attach_checkpoint_engine, load_checkpoint, save_checkpoint
from megadeberta.engine.weights import WEIGHTS_FILE, gather_weights

TOKENIZER_FILE = "spm.model"


class RunCheckpoints:
    """Saves and resumes the engine of one run. All methods are collective over all ranks.

    Beside DeepSpeed's own files a checkpoint holds the fp32 weights under their global names and the tokenizer:
    exporting needs neither DeepSpeed nor the layout the run had.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        config: RunConfig,
        *,
        data_fingerprint: Mapping[str, str],
        collectives: Collectives,
    ) -> None:
        attach_checkpoint_engine(engine)
        self._engine = engine
        self._config = config
        self._collectives = collectives
        self._root = config.training.output_dir / CHECKPOINTS_FOLDER
        self._store = CheckpointStore(self._root, collectives=collectives, keep_last=config.checkpoint.keep_last)
        self._run = run_record(config, world_size=collectives.world_size, data_fingerprint=data_fingerprint)
        self._saved_step = -1

    def resume(self) -> int:
        """Load the newest sound checkpoint, if there is any; the number of optimizer steps done.

        Raises:
            CheckpointError: there are checkpoints but no sound one, or it is of another run; or there is none and
                checkpoint.resume is "required".
        """
        required = self._config.checkpoint.resume == "required"
        point = find_resumable(self._root, collectives=self._collectives, run=self._run, required=required)
        if point is None:
            return 0
        load_checkpoint(self._engine, point, collectives=self._collectives)
        self._saved_step = point.step
        return point.step

    def save(self, step: int, *, required: bool) -> None:
        """Commit a checkpoint of ``step`` optimizer steps, unless that step is saved already.

        Raises:
            StorageError: it could not be written and is ``required``, or it was the third failure in a row.
        """
        if step == self._saved_step:
            return
        state = {"next_step": step, "next_sample": step * self._config.deepspeed["train_batch_size"]}
        committed = save_checkpoint(
            self._engine,
            self._store,
            step,
            run=self._run,
            state=state,
            required=required,
            write_more=self._write_portable_files,
        )
        if committed is not None:
            self._saved_step = step

    def _write_portable_files(self, folder: Path) -> dict[str, Digest]:
        """Weights and tokenizer, by rank 0; gathering the weights is collective."""
        weights = gather_weights(self._engine)
        if self._collectives.rank != 0:
            return {}
        try:
            safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:  # its Rust writer has no other error for a full disk
            raise OSError(errno.EIO, str(error), str(folder / WEIGHTS_FILE)) from error
        shutil.copyfile(self._config.data.tokenizer, folder / TOKENIZER_FILE)
        return {name: _make_durable(folder / name) for name in (WEIGHTS_FILE, TOKENIZER_FILE)}


def run_record(config: RunConfig, *, world_size: int, data_fingerprint: Mapping[str, str]) -> RunRecord:
    """What a checkpoint must share with the run that resumes it.

    The length of the run, the learning rate, the schedule and the micro batch may change between stop and resume; the
    model, the data and what decides the order and the masks of the samples may not.
    """
    block = config.deepspeed
    precision = next((name for name in ("bf16", "fp16") if is_enabled(block, name)), "fp32")
    world = WorldLayout(
        world_size=world_size, data_parallel=world_size, zero_stage=zero_stage(block), precision=precision
    )
    fixed = {
        "model": config.model.model_dump(mode="json"),
        "objective": config.objective.model_dump(mode="json"),
        "data": {
            "sequence_length": config.data.sequence_length,
            "packing": config.data.packing,
            **data_fingerprint,
        },
        "training": {"seed": config.training.seed},
        "deepspeed": {"train_batch_size": block["train_batch_size"]},
    }
    return RunRecord(
        world=world,
        versions={
            "megadeberta": megadeberta.__version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "deepspeed")},
        },
        fingerprint={f"{section}.{key}": str(value) for section, keys in fixed.items() for key, value in keys.items()},
        config=config.model_dump(mode="json"),
    )


def _make_durable(path: Path) -> Digest:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return hash_file(path)
