"""The checkpoint that a path means: one that it names, or the newest sound one of a run."""

import logging
from collections.abc import Callable
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, checkpoints_of, read_pointer
from megadeberta.checkpoint.manifest import MANIFEST_NAME, Manifest
from megadeberta.checkpoint.verify import check_files, verify_checkpoint
from megadeberta.errors import CheckpointError

log = logging.getLogger(__name__)


def checkpoint_at(path: Path) -> tuple[Path, Manifest]:
    """The folder and manifest of a checkpoint, every byte verified in this process.

    Args:
        path: one ``step-N`` folder, or the output folder of a run: the one that ``latest`` names, else its newest sound
            one.

    Raises:
        CheckpointError: there is none, or none is sound.
    """
    folder, manifest, problems = _find(path, verify_checkpoint)
    for problem in problems:
        log.warning("%s", problem)
    if folder != path:
        log.info("using %s, verified", folder)
    return folder, manifest


def manifest_at(path: Path) -> tuple[Path, Manifest]:
    """What ``checkpoint_at`` will give as far as names and sizes of files tell, in no time and without a warning.

    Raises:
        CheckpointError: as ``checkpoint_at``.
    """
    folder, manifest, _ = _find(path, check_files)
    return folder, manifest


def _find(path: Path, check: Callable[[Path], Manifest]) -> tuple[Path, Manifest, list[str]]:
    """The checkpoint that a path means, and what is wrong with those that come before it."""
    if (path / MANIFEST_NAME).is_file():
        return path, check(path), []
    root = path / CHECKPOINTS_FOLDER
    names = [str(name) for name in checkpoints_of(path)]
    problems: list[str] = []
    try:
        pointed = read_pointer(root)
    except CheckpointError as error:
        problems.append(str(error))
        pointed = None
    if pointed in names:
        names.insert(0, names.pop(names.index(pointed)))
    damaged: list[str] = []
    for name in names:
        try:
            return root / name, check(root / name), problems + damaged
        except CheckpointError as error:
            damaged.append(str(error))
    raise CheckpointError(f"{root}: none of {len(names)} checkpoints is intact, the newest: {damaged[0]}")
