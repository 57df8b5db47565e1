"""Is this folder exactly what its manifest says? Reading every byte is the price; the ranks share it."""

import logging
import os
import re
from pathlib import Path

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, hash_file
from megadeberta.checkpoint.folder import checkpoint_path
from megadeberta.checkpoint.manifest import (
    MANIFEST_NAME,
    SAFE_NAME,
    FileRecord,
    Manifest,
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
        path = folder / name
        _check_bytes(path, path.lstat().st_size, record.bytes, _origin(record, manifest))
    return manifest


def verify_together(root: Path, name: str, collectives: Collectives) -> Manifest:
    """Check every file of ``root/name``, file k on rank k mod world size. All-gathers the findings over all ranks.

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
    """Read the manifest, compare the list of files with it, and hash the files that fall to ``rank``.

    Raises:
        CheckpointError: file, expected, found, what to do.
    """
    manifest = read_manifest(folder)
    _check_names(folder, manifest)
    for index, (name, record) in enumerate(sorted(manifest.files.items())):
        if index % world_size == rank:
            expected = Digest(record.bytes, record.sha256)
            _check_file(folder / name, expected, _origin(record, manifest))
    return manifest


def _origin(record: FileRecord, manifest: Manifest) -> str:
    return f"written by rank {record.rank} at step {manifest.step}"


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


def _check_file(path: Path, expected: Digest, origin: str) -> None:
    try:
        size = os.lstat(path).st_size
        found = hash_file(path) if size == expected.bytes else Digest(size, "")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error
    _check_bytes(path, found.bytes, expected.bytes, origin)
    if found.sha256 != expected.sha256:
        raise CheckpointError(
            f"{path}: sha256 {found.sha256[:12]}…, the manifest says {expected.sha256[:12]}… ({origin}); {_ADVICE}"
        )


def _check_bytes(path: Path, found: int, expected: int, origin: str) -> None:
    if found != expected:
        raise CheckpointError(f"{path}: {found} bytes, the manifest says {expected} ({origin}); {_ADVICE}")


_ADVICE = "the checkpoint is damaged; use an older one"
