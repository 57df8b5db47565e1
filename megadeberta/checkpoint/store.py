"""Commit: all ranks write into a hidden folder, rank 0 makes it visible in one rename, then moves the pointer.

The order is write, fsync(file), fsync(folder), rename, fsync(parent), replace ``latest``, fsync(parent): a kill or a
power cut at any instant leaves the pointer on a whole checkpoint. A rank whose write fails says so in the next
collective, so no rank waits for another that has given up.
"""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.durable import Digest, create_empty, format_bytes, remove_tree, write_new_file
from megadeberta.checkpoint.folder import (
    TRASH_PREFIX,
    CheckpointName,
    list_checkpoints,
    list_leftovers,
    next_name,
    write_pointer,
)
from megadeberta.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    RunRecord,
    encode_manifest,
    read_manifest,
)
from megadeberta.checkpoint.merge import Report, merge_reports
from megadeberta.checkpoint.rank_share import RankShare
from megadeberta.checkpoint.shares import Place, ShareSize, plan_shares
from megadeberta.checkpoint.stages import SaveStages
from megadeberta.errors import CheckpointError, StorageError
from megadeberta.host import machine_id
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
        share: RankShare,
        *,
        run: RunRecord,
        write_more: Callable[[Path], Mapping[str, Digest]] | None = None,
        required: bool = False,
    ) -> SaveStages:
        """Write and commit a checkpoint: rank 0 makes folder and files, all write, rank 0 commits, rank 0 tidies up.
        Before them, an all-gather of sizes; between them a broadcast, an all-gather and a broadcast of text, on the
        thread that drives the stages.

        A failed save (disk full, I/O error) leaves the previous checkpoint and the pointer as they were, removes what
        it wrote, warns, and gives None on every rank; the third one in a row raises.

        Args:
            share: what this rank writes into the file of its machine; it may be written on another thread.
            write_more: called on every rank with the same new folder; writes further files into it, durably, and gives
                their digests by name. It may raise OSError, has no collectives, and may run on another thread.
            required: raise at the first failure, for the last checkpoint of a run.

        Raises:
            StorageError: on every rank; what failed where, and which checkpoint is still there.
        """
        size = ShareSize(machine_id(), share.header_bytes, share.data_bytes)
        sizes = [ShareSize(*json.loads(text)) for text in self._collectives.all_gather_text(json.dumps(size))]
        places = plan_shares(sizes)
        prepared = yield partial(self._prepare, step, places) if self._is_first else _nothing
        problem, name = json.loads(self._collectives.broadcast_text(prepared))
        folder = self.root / name
        if not problem:
            place = places[self._collectives.rank]
            report = yield partial(_write_share, folder, place, share, write_more)
            reports = self._collectives.all_gather_text(report)
            outcome = yield partial(self._commit, step, folder, places, reports, run) if self._is_first else _nothing
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

    def _prepare(self, step: int, places: Sequence[Place]) -> str:
        """Rank 0 alone. Gives ``[problem, name of the new hidden folder]`` as JSON.

        The files are made here, where nothing can be in the way of their names; the ranks open what is there.
        """
        name = f"{TEMPORARY_PREFIX}step-{step}"
        try:
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                sync_folder(self.root.parent)
            remove_leftovers(self.root)
            newest = next(iter(list_checkpoints(self.root)), None)
            expected = sum(place.header.bytes + place.data.bytes for place in places)
            needed = int(max(expected, _size_of(self.root, newest)) * _HEADROOM)
            free = shutil.disk_usage(self.root).free
            if free < needed:
                return json.dumps([f"needs {format_bytes(needed)}, {format_bytes(free)} free on {self.root}", name])
            taken = {entry.name for entry in self.root.iterdir()}  # what could not be removed
            numbers = itertools.count(2)
            while name in taken:
                name = f"{TEMPORARY_PREFIX}step-{step}-{next(numbers)}"
            (self.root / name).mkdir()
            for file in {place.file: None for place in places}:
                create_empty(self.root / name / file)
            sync_folder(self.root)
        except OSError as error:
            return json.dumps([_describe(error), name])
        return json.dumps(["", name])

    def _commit(self, step: int, folder: Path, places: Sequence[Place], reports: list[str], run: RunRecord) -> str:
        """Rank 0 alone. Gives ``[problem, name]`` as JSON."""
        try:
            files = merge_reports(folder, places, [Report.from_json(report) for report in reports])
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


def _write_share(
    folder: Path, place: Place, share: RankShare, write_more: Callable[[Path], Mapping[str, Digest]] | None
) -> str:
    try:
        files = write_more(folder) if write_more is not None else {}
        return Report(share.write(folder, place), files, "").to_json()
    except OSError as error:
        return Report(None, {}, _describe(error)).to_json()


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


def _size_of(root: Path, name: CheckpointName | None) -> int:
    try:
        return read_manifest(root / str(name)).total_bytes if name else 0
    except CheckpointError:
        return 0


def _describe(error: OSError) -> str:
    return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
