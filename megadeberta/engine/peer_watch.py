"""A rank that waits for a GPU cannot say that another rank is gone: a thread of its own does.

NCCL does not raise where the host waits. Its watchdog sees the error or the timeout, marks the group, sleeps four times
``TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC`` (a minute by default) and then aborts the process (torch 2.13,
ProcessGroupNCCL.cpp ``Watchdog::runLoop``). The thread here looks at the mark every second and ends the rank in that
time: with the exit code of a lost peer and one line that names it.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed

from megadeberta.errors import EXIT_PEER_LOST

_BEAT_SECONDS = 1.0
_PATIENCE = 5
"""Beats within which a rank that is alive has counted on."""


class PeerWatch:
    """Counts on in the store that all ranks share, so that they see who is alive, and looks for an error of NCCL's."""

    def __init__(
        self,
        store: distributed.Store,
        *,
        rank: int,
        world_size: int,
        find_error: Callable[[], str | None],
        end: Callable[[str], None],
        beat_seconds: float = _BEAT_SECONDS,
    ) -> None:
        """
        Args:
            find_error: what the backend says of a lost peer, None while it says nothing.
            end: called once with the message, on the thread.
        """
        self._store, self._rank, self._world_size = store, rank, world_size
        self._find_error, self._end, self._beat_seconds = find_error, end, beat_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peer-watch", daemon=True)

    def start(self) -> None:
        """Start to count and to look."""
        self._thread.start()

    def stop(self) -> None:
        """End without a word."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        beats = 0
        while not self._stopped.wait(self._beat_seconds):
            beats += 1
            with suppress(RuntimeError):  # the store is gone with rank 0; NCCL will notice too
                self._store.set(str(self._rank), str(beats))
            error = self._find_error()
            if error is not None:
                self._end(
                    f"{self._lost_ranks()} ended or stopped answering ({error}); its own message, if it had one, is "
                    "above. The same command resumes from the last checkpoint"
                )
                return

    def _lost_ranks(self) -> str:
        """Those that have not counted on for a while."""
        try:
            before = self._counts()
            for beat in range(_PATIENCE):
                self._stopped.wait(self._beat_seconds)
                self._store.set(str(self._rank), f"looking {beat}")  # the others look at this rank too
            after = self._counts()
        except RuntimeError:
            return "rank 0, with whose process or machine the store of the job is gone,"
        lost = [rank for rank in range(self._world_size) if rank != self._rank and before[rank] == after[rank]]
        if not lost:
            return "another rank, though every process is alive,"
        return f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"

    def _counts(self) -> Sequence[bytes | None]:
        keys = map(str, range(self._world_size))
        return [self._store.get(key) if self._store.check([key]) else None for key in keys]


@contextmanager
def watch_peers(device: torch.device) -> Iterator[None]:
    """While the block runs, end this process with exit code 80 when NCCL has lost a peer; nothing with other backends,
    which raise by themselves."""
    if distributed.get_backend() != "nccl" or distributed.get_world_size() == 1:
        yield
        return
    store: Any = distributed.distributed_c10d._get_default_store()
    watch = PeerWatch(
        # A connection of its own: the main thread may wait on the other one.
        distributed.PrefixStore("peer_watch", store.clone()),
        rank=distributed.get_rank(),
        world_size=distributed.get_world_size(),
        find_error=lambda: nccl_error(device),
        end=_end_process,
    )
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def nccl_error(device: torch.device) -> str | None:
    """What the watchdog of one of this rank's groups has seen, None for nothing."""
    for group in list(distributed.distributed_c10d._world.pg_map):
        if distributed.get_backend(group) == "nccl":
            found = group._get_backend(device).get_error()
            if found.name != "SUCCESS":
                return f"NCCL: {found.name}"
    return None


def _end_process(message: str) -> None:
    """The main thread waits in a CUDA call and can do nothing any more."""
    sys.stderr.write(f"error: {message}\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(EXIT_PEER_LOST)
