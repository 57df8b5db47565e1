"""A lost peer is named by a thread, and the process ends with the code for it."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from megadeberta.engine import peer_watch
from megadeberta.engine.peer_watch import PeerWatch
from megadeberta.errors import EXIT_PEER_LOST

BEAT = 0.02


class Rank:
    """One rank's watch on a store that the threads of a process share; ``error`` is what its NCCL says."""

    def __init__(self, store: distributed.Store, rank: int, world_size: int = 4) -> None:
        self.error: str | None = None
        self.said: list[str] = []
        self.ended = threading.Event()
        self.watch = PeerWatch(
            store, rank=rank, world_size=world_size, find_error=lambda: self.error, end=self._end, beat_seconds=BEAT
        )
        self.watch.start()

    def _end(self, message: str) -> None:
        self.said.append(message)
        self.ended.set()


def test_the_ranks_that_no_longer_count_are_named_and_no_others() -> None:
    store = distributed.HashStore()
    ranks = [Rank(store, rank) for rank in range(4)]
    time.sleep(5 * BEAT)
    assert not any(rank.said for rank in ranks)  # nothing happens while NCCL says nothing
    for dead in (1, 3):
        ranks[dead].watch.stop()
    ranks[0].error = "NCCL: TIMEOUT"
    assert ranks[0].ended.wait(10)
    ranks[0].watch.stop()
    ranks[2].watch.stop()
    assert ranks[0].said == [
        "ranks 1, 3 ended or stopped answering (NCCL: TIMEOUT); its own message, if it had one, is above. The same "
        "command resumes from the last checkpoint"
    ]
    assert ranks[2].said == []


def test_a_rank_that_never_began_is_lost_and_one_that_only_hangs_is_not() -> None:
    store = distributed.HashStore()
    first, second = Rank(store, 0, world_size=3), Rank(store, 1, world_size=3)
    first.error = "NCCL: COMM_ERROR"
    assert first.ended.wait(10)
    assert first.said[0].startswith("rank 2 ended or stopped answering (NCCL: COMM_ERROR)")
    third = Rank(store, 2, world_size=3)
    time.sleep(3 * BEAT)
    second.error = "NCCL: TIMEOUT"
    fourth = Rank(store, 0, world_size=3)
    assert second.ended.wait(10)
    assert second.said[0].startswith("another rank, though every process is alive, ended or stopped answering")
    for rank in (third, fourth):
        rank.watch.stop()


class _GoneStore:
    """As a TCPStore whose server is gone."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Broken pipe")

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Broken pipe")


def test_without_the_store_its_rank_is_named() -> None:
    rank = Rank(_GoneStore(), 1)
    rank.error = "NCCL: REMOTE_ERROR"
    assert rank.ended.wait(10)
    assert rank.said[0].startswith("rank 0, with whose process or machine the store of the job is gone, ended")


def test_the_mark_of_any_group_of_nccl_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(name: str) -> SimpleNamespace:
        backend = SimpleNamespace(get_error=lambda: SimpleNamespace(name=name))
        return SimpleNamespace(_get_backend=lambda device: backend)

    groups = {"good": group("SUCCESS"), "bad": group("TIMEOUT"), "gloo": group("COMM_ERROR")}
    backends = {id(each): "gloo" if name == "gloo" else "nccl" for name, each in groups.items()}
    monkeypatch.setattr(distributed, "get_backend", lambda each: backends[id(each)])

    def found(*names: str) -> str | None:
        world = SimpleNamespace(pg_map=[groups[name] for name in names])
        monkeypatch.setattr(distributed.distributed_c10d, "_world", world)
        return peer_watch.nccl_error(torch.device("cpu"))

    assert found("good", "gloo") is None
    assert found("good", "bad") == "NCCL: TIMEOUT"


def test_the_process_ends_with_the_code_of_a_lost_peer_while_its_main_thread_waits() -> None:
    code = (
        "import threading, time\n"
        "from torch import distributed\n"
        "from megadeberta.engine.peer_watch import PeerWatch, _end_process\n"
        "watch = PeerWatch(distributed.HashStore(), rank=0, world_size=2, find_error=lambda: 'NCCL: TIMEOUT',\n"
        "                  end=_end_process, beat_seconds=0.02)\n"
        "watch.start()\n"
        "time.sleep(60)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == EXIT_PEER_LOST
    assert result.stderr.startswith("error: rank 1 ended or stopped answering (NCCL: TIMEOUT)")
