"""The names in ``OUTPUT/checkpoints``: ``step-N``, ``.tmp-…``, ``.trash-…`` and the pointer ``latest``.

A checkpoint is never overwritten. When ``step-N`` exists already (an older or damaged one of the same step), the new
one is called ``step-N-2``, ``step-N-3`` and so on, and counts as newer.
"""

import re
from pathlib import Path
from typing import NamedTuple

from megadeberta.checkpoint.durable import read_small_file
from megadeberta.errors import CheckpointError
from megadeberta.storage import TEMPORARY_PREFIX, write_file

CHECKPOINTS_FOLDER = "checkpoints"
POINTER_NAME = "latest"
TRASH_PREFIX = ".trash-"
_CHECKPOINT_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})(?:-([2-9]|[1-9][0-9]{1,8}))?")
_TAG = re.compile(r"[A-Za-z0-9_.-]+")
_MAX_POINTER_BYTES = 256


class CheckpointName(NamedTuple):
    """Sorts from old to new."""

    step: int
    attempt: int

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        """``step-40`` or ``step-40-2``; None for anything else."""
        match = _CHECKPOINT_NAME.fullmatch(text)
        return cls(int(match[1]), int(match[2] or 1)) if match else None

    def __str__(self) -> str:
        return f"step-{self.step}" if self.attempt == 1 else f"step-{self.step}-{self.attempt}"


def list_checkpoints(root: Path) -> list[CheckpointName]:
    """Folders that are named like a checkpoint, newest first, sound or not."""
    if not root.is_dir():
        return []
    names = (CheckpointName.parse(entry.name) for entry in root.iterdir())
    return sorted((name for name in names if name is not None), reverse=True)


def checkpoints_of(output_dir: Path) -> list[CheckpointName]:
    """Those of a run, newest first, sound or not.

    Raises:
        CheckpointError: there is none.
    """
    names = list_checkpoints(output_dir / CHECKPOINTS_FOLDER)
    if not names:
        raise CheckpointError(
            f"{output_dir}: holds no checkpoint; give the training.output_dir of a run, one of its "
            f"{CHECKPOINTS_FOLDER}/step-N folders, or a folder made by `megadeberta convert import`"
        )
    return names


def list_leftovers(root: Path) -> list[Path]:
    """What an interrupted save or deletion left behind."""
    return [entry for entry in root.iterdir() if entry.name.startswith((TEMPORARY_PREFIX, TRASH_PREFIX))]


def next_name(root: Path, step: int) -> CheckpointName:
    """A name for a new checkpoint of ``step`` that no folder has."""
    attempts = [name.attempt for name in list_checkpoints(root) if name.step == step]
    return CheckpointName(step, max(attempts, default=0) + 1)


def checkpoint_path(root: Path, tag: str) -> Path:
    """The folder that ``tag`` names.

    Raises:
        CheckpointError: the tag is no plain name, or names no real folder directly inside ``root``.
    """
    if not _TAG.fullmatch(tag) or tag in (".", ".."):
        raise CheckpointError(f"checkpoint name {tag[:80]!r} is not of the form step-N; list the names in {root}")
    path = root / tag
    if path.is_symlink():
        raise CheckpointError(f"{path}: is a symbolic link; a checkpoint must be a real folder inside {root}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder; list the names in {root}")
    return path


def node_file_name(number: int) -> str:
    """The file of the tensors of all ranks of a machine; machines are numbered by their first ranks."""
    return f"node-{number}.safetensors"


NODE_FILE = r"^node-(0|[1-9][0-9]{0,8})\.safetensors$"
INDEX_NAME = "index.json"
"""What every rank wrote where, a JSON list in the order of the ranks: a resume opens it instead of all the others."""


def read_pointer(root: Path) -> str | None:
    """The name in ``latest``, or None when there is no such file.

    Raises:
        CheckpointError: ``latest`` is empty, garbage, a link, or cannot be read.
    """
    path = root / POINTER_NAME
    try:
        data = read_small_file(path, _MAX_POINTER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    text = data.decode("ascii", "replace").removesuffix("\n")
    if not text:
        raise CheckpointError(f"{path}: is empty, expected the name of a checkpoint folder")
    if not _TAG.fullmatch(text):
        raise CheckpointError(f"{path}: holds {text[:40]!r}, expected the name of a checkpoint folder")
    return text


def write_pointer(root: Path, name: CheckpointName) -> None:
    """Let ``latest`` name this checkpoint, in one durable step.

    Raises:
        StorageError: the file system refused; ``latest`` is as it was.
    """
    write_file(root / POINTER_NAME, f"{name}\n".encode())
