"""Ranks as threads: the commit and resume protocols without processes, and a fault on any rank at any call."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megadeberta.checkpoint import CheckpointStore, Digest, RunRecord, WorldLayout
from megadeberta.checkpoint.content import WEIGHT
from megadeberta.checkpoint.durable import write_new_file
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.rank_share import Entry, RankContent, RankShare
from megadeberta.checkpoint.stages import save_at_once

WORLD_SIZE = 2


class ThreadCollectives:
    """The collectives of one of ``world_size`` threads; a rank that waits longer than 10 s fails the test."""

    def __init__(self, rank: int, world_size: int, slots: list[str], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.world_size = world_size
        self._slots = slots
        self._barrier = barrier

    def broadcast_text(self, text: str | None) -> str:
        return self.all_gather_text(text or "")[0]

    def all_gather_text(self, text: str) -> list[str]:
        self._slots[self.rank] = text
        self._barrier.wait(10)
        texts = list(self._slots)
        self._barrier.wait(10)
        return texts


def on_ranks(function: Callable[[ThreadCollectives], Any], world_size: int = WORLD_SIZE) -> list[Any]:
    """Call ``function`` once per rank; what each returned, or the exception it raised."""
    slots, barrier = [""] * world_size, threading.Barrier(world_size)

    def call(rank: int) -> Any:
        threading.current_thread().name = f"rank-{rank}"
        try:
            return function(ThreadCollectives(rank, world_size, slots, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(call, range(world_size)))


def run_record(world_size: int = WORLD_SIZE, **fingerprint: str) -> RunRecord:
    """A run without torch."""
    layout = WorldLayout(world_size=world_size, data_parallel=world_size, zero_stage=1, precision="fp32")
    return RunRecord(
        world=layout,
        versions={"torch": "2.13.0"},
        fingerprint={"model": "toy", "data": "none", **fingerprint},
        config={"lr": 1e-3, "name": "größe", "layers": [1, 2, {"a": None}]},
    )


def content(step: int, name: str) -> bytes:
    """What a file of a step holds; about 4 kB, different for every step and name."""
    return f"{name} of step {step}\n".encode() * 200


def share(rank: int, step: int, size: int = 1000) -> RankShare:
    """A rank's part of one parameter, about 4 kB; different for every step and rank."""
    piece = Fragment(name="weight", shape=(WORLD_SIZE * size,), start=rank * size, stop=(rank + 1) * size)
    record = RankContent(fragments=(piece,), counters={"step": step}, scaler={})
    return RankShare(rank, record, [Entry(WEIGHT, piece, lambda: values(rank, step, size))])


def values(rank: int, step: int, size: int = 1000) -> np.ndarray:
    """What ``share`` holds."""
    return np.random.default_rng([rank, step]).standard_normal(size, dtype=np.float32)


def write_files(rank: int, step: int) -> Callable[[Path], dict[str, Digest]]:
    """A file of every rank and one of rank 0, beside those of all."""
    names = [f"own-{rank}.txt"] + (["spm.model"] if rank == 0 else [])

    def write(folder: Path) -> dict[str, Digest]:
        return {name: write_new_file(folder / name, content(step, name)) for name in names}

    return write


def save(
    root: Path,
    *steps: int,
    keep_last: int = 2,
    keep_every: int | None = None,
    world_size: int = WORLD_SIZE,
    **options: Any,
) -> list[Any]:
    """Save these steps with one store; per rank the folders, or the exception."""

    def body(collectives: ThreadCollectives) -> list[Path | None]:
        store = CheckpointStore(root, collectives=collectives, keep_last=keep_last, keep_every=keep_every)
        rank = collectives.rank
        return [
            save_at_once(
                store.stages(
                    step,
                    share(rank, step),
                    run=run_record(world_size),
                    write_more=write_files(rank, step),
                    **options,
                )
            )
            for step in steps
        ]

    return on_ranks(body, world_size)


class FailingCalls:
    """Makes the k-th of these os calls fail on one rank's thread, as a full or broken disk would."""

    CALLS = ("write", "fsync", "rename", "replace", "mkdir", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, rank: int, fail_at: int, code: int = errno.ENOSPC) -> None:
        self.calls: list[str] = []
        self.broken_for_good = False
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name), f"rank-{rank}", fail_at, code))

    def _wrap(self, name: str, real: Callable[..., Any], thread: str, fail_at: int, code: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread().name != thread:
                return real(*args, **options)
            if name == "open" and not args[1] & (os.O_CREAT | os.O_WRONLY):
                return real(*args, **options)
            self.calls.append(name)
            index = len(self.calls) - 1
            if index == fail_at or (self.broken_for_good and index > fail_at):
                raise OSError(code, os.strerror(code), str(args[0]))
            return real(*args, **options)

        return call
