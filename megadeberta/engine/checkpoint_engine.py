"""DeepSpeed's save and load on top of the commit protocol: hashed and durable writes, loads that execute nothing.

DeepSpeed 0.19.8 unpickles freely (``TorchCheckpointEngine.load`` passes ``weights_only=False``). Its ZeRO 0-3
checkpoints need four classes beside tensors and containers; everything else is refused.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import safe_globals

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, HashingFile
from megadeberta.checkpoint.manifest import RunRecord
from megadeberta.checkpoint.resume import ResumePoint
from megadeberta.checkpoint.store import CheckpointStore
from megadeberta.engine.random_state import capture_random_state, restore_random_state
from megadeberta.errors import CheckpointError, ConfigError

ALLOWED_CLASSES = [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum]
"""What ZeRO's optimizer files hold beside tensors and containers: numbers only, no behaviour at load."""
_BYTES_PER_PARAMETER = 20
"""float32 weight, master copy, two moments of Adam and the portable weights: the largest of the layouts."""


class HashingCheckpointEngine(CheckpointEngine):
    """Writes through ``HashingFile`` and records the digests; reads with ``weights_only`` and a short allow-list.

    ``save`` never raises an OSError: DeepSpeed has a barrier after it that every rank must reach. The first one is
    kept, and ``take_digests`` raises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "HashingCheckpointEngine"
        self._digests: dict[str, Digest] = {}
        self._error: OSError | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        """A save begins."""
        self._digests = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """The store has made the folder."""

    def save(self, state_dict: Any, path: str) -> None:
        """``torch.save`` to a new file; see the class about errors."""
        if self._error is not None:
            return
        try:
            file = HashingFile(Path(path))
            try:
                torch.save(state_dict, file)
            finally:
                self._digests[Path(path).name] = file.finish()
        except OSError as error:
            self._error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """``torch.load`` of tensors, containers and ``ALLOWED_CLASSES``.

        Raises:
            CheckpointError: the file asks for anything else, or cannot be read.
        """
        return _load_safely(Path(path), map_location=map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """The store commits."""
        return True

    def take_digests(self) -> dict[str, Digest]:
        """Digests by file name of what this rank wrote since the last call.

        Raises:
            OSError: a write failed.
        """
        digests, error = self._digests, self._error
        self._digests, self._error = {}, None
        if error is not None:
            raise error
        return digests


def attach_checkpoint_engine(engine: DeepSpeedEngine) -> HashingCheckpointEngine:
    """Make ``engine`` save and load through a ``HashingCheckpointEngine``, and copy no scripts beside checkpoints.

    Raises:
        ConfigError: an option of the deepspeed block would read or write checkpoint files by another way.
    """
    refused = {
        "checkpoint.load_universal": (engine.load_universal_checkpoint(), "would unpickle files freely"),
        "checkpoint.use_node_local_storage": (
            engine.use_node_local_storage(),
            "would scatter the files over the nodes",
        ),
        "zero_optimization.offload_optimizer.device=nvme": (
            engine.zero_nvme_offload_optimizer(),
            "would put files into a checkpoint that no manifest covers",
        ),
        "zero_optimization.elastic_checkpoint": (
            engine.zero_elastic_checkpoint(),
            "0.19.8 fails to load the checkpoints that it then saves",
        ),
    }
    for option, (is_set, reason) in refused.items():
        if is_set:
            raise ConfigError(f"deepspeed.{option} is set: DeepSpeed {reason}; remove it from the recipe")
    checkpoint_engine = HashingCheckpointEngine()
    engine.checkpoint_engine = checkpoint_engine
    engine._copy_recovery_script = _copy_nothing
    return checkpoint_engine


def save_checkpoint(
    engine: DeepSpeedEngine,
    store: CheckpointStore,
    step: int,
    *,
    run: RunRecord,
    state: Mapping[str, Any],
    required: bool = False,
    write_more: Callable[[Path], Mapping[str, Digest]] | None = None,
) -> Path | None:
    """Commit the whole state of ``engine`` and this rank's random generators. Collective over all ranks.

    Args:
        engine: prepared by ``attach_checkpoint_engine``.
        step: optimizer steps done.
        state: this rank's counters and data position, JSON values; ``load_checkpoint`` gives them back.
        required: raise ``StorageError`` if it fails; else that happens at the third failure in a row.
        write_more: called on every rank after DeepSpeed has written; may be collective, gives digests as ``write`` of
            ``CheckpointStore.save`` does.

    Returns:
        The committed folder, or None when the disk refused and training may go on.
    """
    return store.save(
        step,
        _writer(engine, write_more),
        run=run,
        rank_state={"random": capture_random_state(), "state": dict(state)},
        expected_bytes=_expected_bytes(engine),
        required=required,
    )


def load_checkpoint(engine: DeepSpeedEngine, point: ResumePoint, *, collectives: Collectives) -> dict[str, Any]:
    """Load weights, optimizer, scheduler and random generators. Collective; the last thing before the first step.

    Returns:
        What this rank gave to ``save_checkpoint`` as ``state``.

    Raises:
        CheckpointError: on every rank; a file asks for a class that is not allowed, or is of another form.
    """
    saved = _inspect(point, collectives)
    loaded, _ = engine.load_checkpoint(str(point.folder.parent), tag=point.folder.name)
    if loaded is None:
        raise CheckpointError(f"{point.folder}: holds no model states of DeepSpeed; use an older checkpoint")
    finding = ""
    try:
        restore_random_state(saved["random"])
    except CheckpointError as error:
        finding = f"{point.folder}, rank {collectives.rank}: {error}"
    _raise_together(collectives, finding)
    return saved["state"]


def _writer(
    engine: DeepSpeedEngine, write_more: Callable[[Path], Mapping[str, Digest]] | None
) -> Callable[[Path], dict[str, Digest]]:
    checkpoint_engine = engine.checkpoint_engine
    assert isinstance(checkpoint_engine, HashingCheckpointEngine)

    def write(folder: Path) -> dict[str, Digest]:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        try:
            more = write_more(folder) if write_more is not None else {}
        finally:
            digests = checkpoint_engine.take_digests()
        return {**digests, **more}

    return write


def _expected_bytes(engine: DeepSpeedEngine) -> int:
    # Under ZeRO 3 a parameter is empty between steps and keeps its size in ds_numel.
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine.module.parameters())
    return count * _BYTES_PER_PARAMETER


def _inspect(point: ResumePoint, collectives: Collectives) -> dict[str, Any]:
    """This rank's state, after a look into every pickle: before any rank loads one, so that all refuse together."""
    saved: dict[str, Any] = {}
    try:
        saved = point.rank_state(collectives.rank)
        if not isinstance(saved.get("state"), dict) or not isinstance(saved.get("random"), dict):
            raise CheckpointError(
                f"{point.folder}: rank {collectives.rank} has no state in it; use an older checkpoint"
            )
        names = sorted(name for name in point.manifest.files if name.endswith(".pt"))
        for name in names[collectives.rank :: collectives.world_size]:
            # Mapped, not read: the pickle is interpreted, the tensors stay on the disk.
            _load_safely(point.folder / name, map_location="cpu", mmap=True)
    except CheckpointError as error:
        finding = str(error)
    else:
        finding = ""
    _raise_together(collectives, finding)
    return saved


def _raise_together(collectives: Collectives, finding: str) -> None:
    """Raise the first rank's finding on all ranks, if there is any. All-gathers text."""
    for text in collectives.all_gather_text(finding):
        if text:
            raise CheckpointError(text)


def _load_safely(path: Path, **options: Any) -> Any:
    try:
        with safe_globals(ALLOWED_CLASSES):
            return torch.load(path, weights_only=True, **options)
    except Exception as error:
        raise CheckpointError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return _refusal(path, found[1])
    first_line = str(error).strip().split("\n")[0][:200]
    return f"{path}: cannot be read as tensors ({type(error).__name__}: {first_line}); use an older checkpoint"


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path}: asks for {name}; refused, because loading it could run code. "
        "No megadeberta run writes such a file: do not use this checkpoint"
    )


def _copy_nothing(save_path: str) -> None:
    """In place of DeepSpeed's ``_copy_recovery_script``: no executable beside a checkpoint."""
