"""One job per output folder: a lock that the kernel releases when its holder dies, kill -9 included."""

import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.shared_folder import check_shared
from megadeberta.errors import CheckpointError, StorageError
from megadeberta.storage import refuse_link, take_lock

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


class OutputLock:
    """``OUTPUT/.lock``, held from ``__enter__`` to ``__exit__``. It says which process on which host holds it."""

    def __init__(self, output_dir: Path, *, wait_seconds: float = 5.0) -> None:
        """``wait_seconds``: a job that was just killed may still be on its way out."""
        self._path = output_dir / LOCK_NAME
        self._wait_seconds = wait_seconds
        self._fd = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            CheckpointError: another process holds it.
            StorageError: the folder cannot be created or written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            refuse_link(self._path)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"output folder {self._path.parent} cannot be used: {error.strerror} ({error.filename}); "
                "choose another training.output_dir"
            ) from error
        try:
            self._take()
            self._sign()
        except BaseException:
            self._close()
            raise
        # A forked child (a data worker) shares the lock, and would keep it after the death of its job.
        os.register_at_fork(after_in_child=self._close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _take(self) -> None:
        try:
            is_ours = take_lock(self._fd, wait_seconds=self._wait_seconds)
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); start one job per folder", self._path, error)
            return
        if not is_ours:
            raise CheckpointError(
                f"output folder {self._path.parent} is in use by {self._holder()}; "
                "wait for it, stop it, or choose another training.output_dir"
            )

    def _sign(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode() + b"\n", 0)
        except OSError as error:
            raise StorageError(
                f"{self._path}: {error.strerror}; free space or choose another training.output_dir"
            ) from error

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._fd, 4096, 0))
            return f"process {int(holder['pid'])} on {str(holder['host'])[:80]} since {str(holder['since'])[:40]}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SharedOutputLock:
    """The lock of a whole job: rank 0 holds it, and every rank learns the outcome. Collectives of text at entry."""

    def __init__(self, output_dir: Path, collectives: Collectives, *, wait_seconds: float = 5.0) -> None:
        self._output_dir = output_dir
        self._lock = OutputLock(output_dir, wait_seconds=wait_seconds)
        self._collectives = collectives

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            CheckpointError, StorageError: as ``OutputLock``, the same on every rank.
            ParallelError: the ranks are on machines that do not share the folder.
        """
        outcome = ""
        if self._collectives.rank == 0:
            try:
                self._lock.__enter__()
            except (CheckpointError, StorageError) as error:
                outcome = json.dumps([isinstance(error, StorageError), str(error)])
        outcome = self._collectives.broadcast_text(outcome)
        if outcome:
            is_storage, message = json.loads(outcome)
            raise (StorageError if is_storage else CheckpointError)(message)
        try:
            check_shared(self._output_dir, self._collectives)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._collectives.rank == 0:
            self._lock.__exit__(kind, error, trace)
