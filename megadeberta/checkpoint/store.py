"""Commit: all ranks write into a hidden folder, rank 0 makes it visible in one rename, then moves the pointer.

The order is write, fsync(file), fsync(folder), rename, fsync(parent), replace ``latest``, fsync(parent): a kill or a
power cut at any instant leaves the pointer on a whole checkpoint. A rank whose write fails says so in the next
collective, so no rank waits for another that has given up.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, format_bytes, remove_tree, write_new_file
from megadeberta.checkpoint.folder import (
    INDEX_NAME,
    TRASH_PREFIX,
    CheckpointName,
    list_checkpoints,
    list_leftovers,
    next_name,
    rank_file_name,
    write_pointer,
)
from megadeberta.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SAFE_NAME,
    FileRecord,
    Manifest,
    RunRecord,
    encode_manifest,
    read_manifest,
)
from megadeberta.checkpoint.stages import SaveStages
from megadeberta.errors import CheckpointError, StorageError
from megadeberta.storage import TEMPORARY_PREFIX, sync_folder

log = logging.getLogger(__name__)

_HEADROOM = 1.05
"""The next checkpoint may be a little larger than the last one, and folders take space too."""
MAX_FAILURES = 3
"""Saves that may fail one after the other before the run stops; training goes on after the earlier ones."""


class CheckpointStore:
    """Writes checkpoints of one run into ``root`` and keeps the newest ``keep_last``."""

    def __init__(self, root: Path, *, collectives: Collectives, keep_last: int, keep_every: int | None = None) -> None:
        """``keep_every``: checkpoints whose step is a multiple of it are kept too."""
        self.root = root
        self._collectives = collectives
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._failures = 0
        self.damaged: frozenset[str] = frozenset()
        """Names of checkpoints that were found damaged: they do not count among those that are kept."""

    def stages(
        self,
        step: int,
        write: Callable[[Path], Mapping[str, Digest]],
        *,
        run: RunRecord,
        rank_state: Mapping[str, Any],
        expected_bytes: int = 0,
        required: bool = False,
    ) -> SaveStages:
        """Write and commit a checkpoint: rank 0 makes the folder, all write, rank 0 commits, rank 0 tidies up. Between
        them a broadcast, an all-gather and a broadcast of text, on the thread that drives the stages.

        A failed save (disk full, I/O error) leaves the previous checkpoint and the pointer as they were, removes what
        it wrote, warns, and gives None on every rank; the third one in a row raises.

        Args:
            write: called on every rank with the same new folder; writes this rank's files into it, durably, and gives
                their digests by name. It may raise OSError, has no collectives, and may run on another thread.
            rank_state: this rank's JSON values; they go into ``rank-R.json``.
            expected_bytes: size of the checkpoint over all ranks as far as known; the last one's size counts too.
            required: raise at the first failure, for the last checkpoint of a run.

        Raises:
            StorageError: on every rank; what failed where, and which checkpoint is still there.
        """
        prepared = yield partial(self._prepare, step, expected_bytes) if self._is_first else _nothing
        problem, name = json.loads(self._collectives.broadcast_text(prepared))
        folder = self.root / name
        if not problem:
            report = yield partial(self._write_share, folder, write, rank_state)
            reports = self._collectives.all_gather_text(report)
            outcome = yield partial(self._commit, step, folder, reports, run) if self._is_first else _nothing
            problem, committed = json.loads(self._collectives.broadcast_text(outcome))
        if problem:
            self._give_up(step, folder, problem, required)
            return None
        self._failures = 0
        yield partial(self._retain, committed) if self._is_first else _nothing
        return self.root / committed

    @property
    def _is_first(self) -> bool:
        return self._collectives.rank == 0

    def _prepare(self, step: int, expected_bytes: int) -> str:
        """Rank 0 alone. Gives ``[problem, name of the new hidden folder]`` as JSON."""
        name = f"{TEMPORARY_PREFIX}step-{step}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.root)
            newest = next(iter(list_checkpoints(self.root)), None)
            needed = int(max(expected_bytes, _size_of(self.root, newest)) * _HEADROOM)
            free = shutil.disk_usage(self.root).free
            if free < needed:
                return json.dumps([f"needs {format_bytes(needed)}, {format_bytes(free)} free on {self.root}", name])
            taken = {entry.name for entry in self.root.iterdir()}  # what could not be removed
            numbers = itertools.count(2)
            while name in taken:
                name = f"{TEMPORARY_PREFIX}step-{step}-{next(numbers)}"
            (self.root / name).mkdir()
            sync_folder(self.root)
        except OSError as error:
            return json.dumps([_describe(error), name])
        return json.dumps(["", name])

    def _write_share(
        self, folder: Path, write: Callable[[Path], Mapping[str, Digest]], rank_state: Mapping[str, Any]
    ) -> str:
        files: dict[str, Digest] = {}
        problem = ""
        try:
            files |= write(folder)
            name = rank_file_name(self._collectives.rank)
            files[name] = write_new_file(folder / name, json.dumps(dict(rank_state), allow_nan=False).encode())
        except OSError as error:
            problem = _describe(error)
        return json.dumps({"files": files, "problem": problem})

    def _commit(self, step: int, folder: Path, reports: list[str], run: RunRecord) -> str:
        """Rank 0 alone. Gives ``[problem, name]`` as JSON."""
        try:
            files = _merge_reports(folder, [json.loads(report) for report in reports])
            files[INDEX_NAME] = _write_index(folder, files, len(reports))
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(format_version=FORMAT_VERSION, step=step, created=created, run=run, files=files)
            write_new_file(folder / MANIFEST_NAME, encode_manifest(manifest))
            sync_folder(folder)
            name = next_name(self.root, step)
            os.rename(folder, self.root / str(name))
            sync_folder(self.root)
            write_pointer(self.root, name)
        except OSError as error:
            return json.dumps([_describe(error), ""])
        except StorageError as error:
            return json.dumps([str(error), ""])
        return json.dumps(["", str(name)])

    def _give_up(self, step: int, folder: Path, problem: str, required: bool) -> None:
        self._failures += 1
        newest = next(iter(list_checkpoints(self.root)), None)
        kept = f"the newest checkpoint is {newest}" if newest else "there is no older checkpoint"
        message = f"checkpoint of step {step} could not be written: {problem}; {kept}"
        if self._is_first:
            try:
                remove_tree(folder)
            except OSError as error:
                log.warning("%s could not be removed: %s", folder, _describe(error))
        if required or self._failures >= MAX_FAILURES:
            advice = "free space or choose another training.output_dir, then start the same command again"
            raise StorageError(f"{message}; {advice}")
        if self._is_first:
            log.warning(
                "%s. TRAINING GOES ON WITHOUT A NEW CHECKPOINT (failure %d; the run stops at failure %d in a row)",
                message,
                self._failures,
                MAX_FAILURES,
            )

    def _retain(self, newest: str) -> str:
        """Delete all but ``keep_last`` and every ``keep_every``-th of those up to the committed one, and the damaged.

        Of several of one step the newest is kept. Newer ones belong to a future that this run went back from; they are
        replaced one by one as it gets there.
        """
        committed = CheckpointName.parse(newest)
        assert committed is not None  # as rank 0 has named it
        older = [name for name in list_checkpoints(self.root) if name < committed]
        damaged = [name for name in older if str(name) in self.damaged]
        sound = [name for name in older if name not in damaged]
        kept_steps = {committed.step}
        beyond = []
        for number, name in enumerate(sound):
            stays = self._keep_every is not None and name.step % self._keep_every == 0 and name.step not in kept_steps
            if number >= self._keep_last - 1 and not stays:
                beyond.append(name)
            kept_steps.add(name.step)
        for name in (*damaged, *beyond):
            try:
                trash = self.root / f"{TRASH_PREFIX}{name}"
                remove_tree(trash)
                # Renamed first: a kill in the middle of deleting must not leave a folder that looks like a checkpoint.
                os.rename(self.root / str(name), trash)
                sync_folder(self.root)
                remove_tree(trash)
            except OSError as error:
                log.warning("old checkpoint %s could not be removed: %s", name, _describe(error))
        return ""


def _nothing() -> str:
    """What the other ranks do while rank 0 works."""
    return ""


def remove_leftovers(root: Path) -> None:
    """Delete what an interrupted save or deletion left in ``root``; only for the job that holds the output lock.

    What cannot be deleted stays, with a warning: it takes space and harms nothing.
    """
    for leftover in list_leftovers(root):
        log.info("removing %s, left by an interrupted run", leftover)
        try:
            remove_tree(leftover)
        except OSError as error:
            log.warning("%s could not be removed: %s; remove it by hand", leftover, _describe(error))


def _merge_reports(folder: Path, reports: list[dict[str, Any]]) -> dict[str, FileRecord]:
    files: dict[str, FileRecord] = {}
    for rank, report in enumerate(reports):
        if report["problem"]:
            raise StorageError(f"rank {rank}: {report['problem']}")
        for name, (size, sha256) in report["files"].items():
            if name in files or not re.fullmatch(SAFE_NAME, name):
                raise StorageError(f"rank {rank} wrote {name!r}, which another rank wrote too or is no plain name")
            files[name] = FileRecord(bytes=size, sha256=sha256, rank=rank)
    found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)}
    for name, record in files.items():
        if found.pop(name, None) != record.bytes:
            raise StorageError(
                f"rank {record.rank} wrote {name}, rank 0 does not find its {record.bytes} bytes in {folder}; "
                "the output folder must be one that all nodes share"
            )
    if found:
        raise StorageError(f"{folder / min(found)}: was put into the unfinished checkpoint by something else")
    return files


def _write_index(folder: Path, files: Mapping[str, FileRecord], world_size: int) -> FileRecord:
    """What every rank wrote about its tensors, as one file: else every rank that resumes would open all of them."""
    parts = []
    for rank in range(world_size):
        name = rank_file_name(rank)
        text = (folder / name).read_bytes()
        if hashlib.sha256(text).hexdigest() != files[name].sha256:
            raise StorageError(
                f"rank 0 reads another {folder / name} than rank {rank} wrote; the disk or its cache is bad"
            )
        parts.append(text)
    size, sha256 = write_new_file(folder / INDEX_NAME, b"[" + b",\n".join(parts) + b"]\n")
    return FileRecord(bytes=size, sha256=sha256, rank=0)


def _size_of(root: Path, name: CheckpointName | None) -> int:
    try:
        return read_manifest(root / str(name)).total_bytes if name else 0
    except CheckpointError:
        return 0


def _describe(error: OSError) -> str:
    return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
