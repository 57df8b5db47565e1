"""The checkpoint that a path means: one that it names, or the newest sound one of a run."""

import logging
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, checkpoints_of, read_pointer
from megadeberta.checkpoint.manifest import MANIFEST_NAME, Manifest
from megadeberta.checkpoint.verify import verify_checkpoint
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
    return (path, verify_checkpoint(path)) if (path / MANIFEST_NAME).is_file() else _newest_sound(path)


def _newest_sound(output_dir: Path) -> tuple[Path, Manifest]:
    root = output_dir / CHECKPOINTS_FOLDER
    names = [str(name) for name in checkpoints_of(output_dir)]
    try:
        pointed = read_pointer(root)
    except CheckpointError as error:
        log.warning("%s", error)
        pointed = None
    if pointed in names:
        names.insert(0, names.pop(names.index(pointed)))
    problems = []
    for name in names:
        try:
            manifest = verify_checkpoint(root / name)
        except CheckpointError as error:
            log.warning("%s", error)
            problems.append(str(error))
            continue
        log.info("using %s, verified", root / name)
        return root / name, manifest
    raise CheckpointError(f"{root}: none of {len(names)} checkpoints is sound, the newest: {problems[0]}")
