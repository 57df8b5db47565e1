"""Is this folder exactly what its manifest says? Reading every byte is the price; the ranks share it."""

import itertools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import hash_parts
from megadeberta.checkpoint.folder import checkpoint_path
from megadeberta.checkpoint.manifest import (
    MANIFEST_NAME,
    SAFE_NAME,
    FileRecord,
    Manifest,
    PartRecord,
    manifest_digest,
    read_manifest,
)
from megadeberta.errors import CheckpointError

log = logging.getLogger(__name__)


def verify_checkpoint(folder: Path) -> Manifest:
    """Check every file of a checkpoint in this process.

    Raises:
        CheckpointError: the first difference found: file, expected, found, what to do.
    """
    return verify_share(folder, rank=0, world_size=1)


def check_files(folder: Path) -> Manifest:
    """As ``verify_checkpoint``, as far as the manifest, names and sizes tell: no file but the manifest is read.

    Raises:
        CheckpointError: a file that is missing or has another size, or no manifest.
    """
    manifest = read_manifest(folder)
    _check_missing(folder, manifest)
    for name, record in sorted(manifest.files.items()):
        _check_size(folder / name, record, manifest.step)
    return manifest


def verify_together(root: Path, name: str, collectives: Collectives) -> Manifest:
    """Check every file of ``root/name``, the ranks sharing the parts. All-gathers the findings over all ranks.

    Raises:
        CheckpointError: the same on every rank: what the first rank with a finding found.
    """
    manifest = None
    try:
        folder = checkpoint_path(root, name)
        manifest = verify_share(folder, rank=collectives.rank, world_size=collectives.world_size)
        finding = f"ok {manifest_digest(manifest).sha256}"
    except CheckpointError as error:
        finding = str(error)
    findings = collectives.all_gather_text(finding)
    for rank, text in enumerate(findings):
        if not text.startswith("ok "):
            raise CheckpointError(text if rank == 0 else f"{text} (seen by rank {rank})")
        if text != findings[0]:
            raise CheckpointError(
                f"{root / name / MANIFEST_NAME}: rank {rank} reads another manifest than rank 0; "
                "the output folder must be one that all nodes share"
            )
    assert manifest is not None  # this rank's finding was among those that are ok
    return manifest


def verify_share(folder: Path, *, rank: int, world_size: int) -> Manifest:
    """Read the manifest, compare the list of files with it, and hash the parts of files that fall to ``rank``.

    Raises:
        CheckpointError: file, expected, found, what to do.
    """
    manifest = read_manifest(folder)
    _check_names(folder, manifest)
    for name, parts in _parts_of_rank(manifest, rank, world_size).items():
        record = manifest.files[name]
        _check_size(folder / name, record, manifest.step)
        _check_parts(folder / name, parts, is_all=len(record.parts) == 1, step=manifest.step)
    return manifest


class _Part(NamedTuple):
    offset: int
    record: PartRecord


def _parts_of_rank(manifest: Manifest, rank: int, world_size: int) -> dict[str, list[_Part]]:
    """Every part of every file falls to one rank; the longest are dealt first, so that all have as much to read."""
    parts = []
    for name, record in manifest.files.items():
        ends = itertools.accumulate(part.bytes for part in record.parts)
        parts += [(name, _Part(end - part.bytes, part)) for end, part in zip(ends, record.parts, strict=True)]
    parts.sort(key=lambda item: (-item[1].record.bytes, item[0], item[1].offset))
    found: dict[str, list[_Part]] = {}
    for name, part in sorted(parts[rank::world_size], key=lambda item: (item[0], item[1].offset)):
        found.setdefault(name, []).append(part)
    return found


def _check_missing(folder: Path, manifest: Manifest) -> set[str]:
    """The names of all files but the manifest."""
    present = set(os.listdir(folder)) - {MANIFEST_NAME}
    if missing := sorted(manifest.files.keys() - present):
        raise CheckpointError(f"{folder / missing[0]}: is missing, the manifest lists it; {_ADVICE}")
    return present


def _check_names(folder: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if not re.fullmatch(SAFE_NAME, name) or name == MANIFEST_NAME:
            raise CheckpointError(f"{folder / MANIFEST_NAME}: lists {name!r}, which is no plain file name; {_ADVICE}")
    extra = sorted(_check_missing(folder, manifest) - manifest.files.keys())
    hidden = [name for name in extra if name.startswith(".")]
    if hidden:
        # Left by file systems and file managers (.nfs0000, .DS_Store); nothing here reads a hidden file.
        log.warning("%s: is not in the manifest, and left alone", folder / hidden[0])
    if extra := [name for name in extra if name not in hidden]:
        raise CheckpointError(
            f"{folder / extra[0]}: is not in the manifest; move it away if you put it there, or use another checkpoint"
        )


def _check_parts(path: Path, parts: Sequence[_Part], *, is_all: bool, step: int) -> None:
    try:
        for (offset, part), found in zip(
            parts, hash_parts(path, [(at, part.bytes) for at, part in parts]), strict=True
        ):
            if found != part.sha256:
                where = "" if is_all else f" of bytes {offset} to {offset + part.bytes}"
                raise CheckpointError(
                    f"{path}: sha256{where} {found[:12]}…, the manifest says {part.sha256[:12]}… "
                    f"(written by rank {part.rank} at step {step}); {_ADVICE}"
                )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error


def _check_size(path: Path, record: FileRecord, step: int) -> None:
    try:
        size = os.lstat(path).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error
    if size != record.bytes:
        raise CheckpointError(
            f"{path}: {size} bytes, the manifest says {record.bytes} (written by {record.writers} at step {step}); "
            f"{_ADVICE}"
        )


_ADVICE = "the checkpoint is damaged; use an older one"
