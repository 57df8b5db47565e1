"""A new folder that appears whole under its name, or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.durable import remove_tree
from megadeberta.checkpoint.manifest import MANIFEST_NAME
from megadeberta.errors import ConfigError
from megadeberta.storage import TEMPORARY_PREFIX, check_may_write, file_in_the_way, storage_errors, sync_folder


def publish_folder(
    out: Path, fill: Callable[[Path], None], *, overwrite: bool = False, marker: str = "config.json"
) -> None:
    """Let ``fill`` write into a hidden sibling of ``out``, then rename it to ``out``.

    If ``fill`` raises, ``out`` is as before and nothing is left behind. A kill in the middle leaves a hidden folder,
    never a half-written ``out``.

    Args:
        overwrite: replace an existing folder, if it contains ``marker``: only what this command makes is ever deleted.

    Raises:
        ConfigError: ``out`` exists and may not be replaced.
        StorageError: the file system refused a write.
    """
    out = out.absolute()
    check_free(out, overwrite=overwrite, marker=marker)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{out.name}-", dir=out.parent))
    try:
        with storage_errors(out):
            fill(temporary)
            temporary.chmod(0o755)
            _make_durable(temporary)
            _swap(temporary, out)
    finally:
        remove_tree(temporary)


def check_free(out: Path, *, overwrite: bool, marker: str = "config.json") -> None:
    """Refuse a place where no folder may be published; the arguments are those of ``publish_folder``.

    Raises:
        ConfigError: ``out`` exists and may not be replaced, or lies below a file or inside a checkpoint.
        WrongPlaceError: this user may not write there.
    """
    if blocking := file_in_the_way(out):
        raise ConfigError(f"{out} cannot be a folder: {blocking} is a file; choose another name")
    for parent in out.absolute().parents:
        if (parent / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"{out} is inside the checkpoint {parent}, which would no longer match its manifest; choose a folder "
                "elsewhere"
            )
    check_may_write(out)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise ConfigError(f"{out} exists and is not a folder; choose another name")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{out} exists and is not empty; choose another folder, or add --overwrite to replace it")
    if not (out / marker).is_file():
        raise ConfigError(
            f"{out} holds no {marker}, so it is not something this command made; --overwrite does not delete it"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a file of a folder that is being filled."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_durable(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def _swap(temporary: Path, out: Path) -> None:
    replaced = None
    if out.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".trash-{out.name}-", dir=out.parent)) / "old"
        os.rename(out, replaced)
    try:
        os.rename(temporary, out)
    except OSError:
        if replaced is not None:
            os.rename(replaced, out)
        raise
    sync_folder(out.parent)
    if replaced is not None:
        remove_tree(replaced.parent)
