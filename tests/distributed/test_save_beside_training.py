"""A checkpoint that is written while training goes on: the same bytes, whole at every instant, and given up cleanly."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from megadeberta.checkpoint import SingleProcess, find_resumable, verify_checkpoint
from megadeberta.checkpoint.rank_share import RankShare
from megadeberta.engine.state.run_checkpoints import RunCheckpoints, find_own_checkpoint, run_record
from tests.distributed.checkpoint_toy import collectives
from tests.distributed.layouts import Layout, train_steps
from tests.distributed.resuming import config_into, start_run
from tests.ranks import RankFailedError, run_ranks

BF16 = (("bf16", {"enabled": True}),)
ZERO_1 = Layout("v3", data=2, zero=1, micro_batch=2)


@contextmanager
def _held_back(until: threading.Event) -> Iterator[None]:
    """The tensors of a checkpoint are written no earlier than that."""
    write = RankShare.write

    def write_late(*arguments: Any) -> Any:
        assert until.wait(60)
        return write(*arguments)

    RankShare.write = write_late
    try:
        yield
    finally:
        RankShare.write = write


def _save_both_ways(rank: int, world_size: int, folder: Path, layout: Layout) -> None:
    (folder / "at-once").mkdir(exist_ok=True), (folder / "beside").mkdir(exist_ok=True)
    assembly, at_once, _ = start_run(layout, folder / "at-once")
    other = config_into(layout, folder / "beside")
    engine, run, ranks = assembly.stepper.engine, at_once._run, collectives()
    beside = RunCheckpoints(engine, other, run=run, collectives=ranks, parameters=assembly.parameters)
    told: list[int] = []
    beside.tell = lambda save: told.append(save.step)
    for step in (2, 4):
        train_steps(assembly, layout, range(step - 2, step))
        at_once.save(step, required=True)
        until = threading.Event()
        with _held_back(until):
            beside.save_beside(step)
            while beside.is_writing:  # rank 0 makes the folder
                time.sleep(0.01)
            beside.advance()
            train_steps(assembly, layout, range(step, step + 2))  # changes everything that is to be written
            assert beside.is_writing
            assert told == ([2] if step == 4 else [])
            until.set()
            beside.finish()
        assert told[-1] == step
        assert beside._copy.bytes == 12 * sum(piece.stop - piece.start for piece in beside._state.owned())
        if step == 2:  # the next two steps again, from where they began
            config = config_into(layout, folder / "at-once")
            assert at_once.resume(find_own_checkpoint(config, run=run, collectives=ranks)) == 2


@pytest.mark.parametrize(
    "layout",
    [
        ZERO_1,
        Layout("v3", data=2, zero=3, micro_batch=2, more=BF16),
        *(
            pytest.param(layout, marks=pytest.mark.campaign)
            for layout in (
                Layout("v3", data=2, micro_batch=2),
                Layout("v3", data=2, micro_batch=2, more=BF16),
                Layout("v3", data=2, zero=2, micro_batch=2),
                Layout("v3", tensor=2, zero=1, micro_batch=2),
                Layout("v3", pipeline=2, zero=1, micro_batch=2),
                Layout("rtd-gdes", data=2, zero=3, micro_batch=2),
            )
        ),
    ],
    ids=str,
)
def test_what_is_written_beside_training_equals_what_is_written_at_once(tmp_path: Path, layout: Layout) -> None:
    run_ranks(_save_both_ways, 2, tmp_path, layout)
    for name in ("step-2", "step-4"):
        at_once, beside = (tmp_path / way / "run" / "checkpoints" / name for way in ("at-once", "beside"))
        assert verify_checkpoint(at_once).files == verify_checkpoint(beside).files
        for path in at_once.iterdir():
            if path.name != "manifest.json":  # which says when it was made
                assert path.read_bytes() == (beside / path.name).read_bytes(), path.name


def _ask_the_clock(rank: int, world_size: int, folder: Path) -> list[bool]:
    """Whether a checkpoint is due, right after the start, 2.9 and 3.1 minutes later, and after the save of then."""
    _, checkpoints, _ = start_run(ZERO_1, folder)
    keep = checkpoints._config.checkpoint.model_copy(update={"minutes": 3.0})
    checkpoints._config = checkpoints._config.model_copy(update={"checkpoint": keep})
    now = time.monotonic()
    answers = []
    with pytest.MonkeyPatch.context() as patch, checkpoints:
        for seconds in (0.0, 174.0, 186.0):
            patch.setattr(time, "monotonic", lambda seconds=seconds: now + 1 + seconds)
            answers.append(checkpoints.is_due_by_time)
        checkpoints.save(1, required=True)
        answers.append(checkpoints.is_due_by_time)
    return answers


def test_a_checkpoint_is_due_by_the_clock_of_rank_0_alone(tmp_path: Path) -> None:
    assert run_ranks(_ask_the_clock, 2, tmp_path) == [[False, False, True, False], [False] * 4]


# Killed

INTERVAL, STEPS = 2, 30


def _train_beside(rank: int, world_size: int, folder: Path, steps: int) -> None:
    """Resume and train to step ``steps``, saving beside it on a disk that is slow; a line for every step."""
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    sync, generator = os.fsync, random.Random(rank)

    def sync_late(target: int) -> None:
        time.sleep(generator.uniform(0.0, 0.02))
        sync(target)

    os.fsync = sync_late
    ranks = collectives()
    assembly, checkpoints, found = start_run(ZERO_1, folder)
    first = checkpoints.resume(found)
    with open(folder / f"losses-{rank}", "a") as log, checkpoints:
        for step in range(first, steps):
            if not any(ranks.all_gather_text("x" if checkpoints.is_writing else "")):
                checkpoints.advance()
            (trained,) = train_steps(assembly, ZERO_1, range(step, step + 1))
            log.write(f"{step} {trained[0].hex()} {trained[1].hex()}\n")
            log.flush()
            if (step + 1) % INTERVAL == 0:
                checkpoints.save_beside(step + 1)
        checkpoints.save(steps, required=True)


def _run_until_killed(folder: Path, steps: int, wait: float, *, in_save: bool) -> bool:
    """Whether a save was under way when both ranks were killed, ``wait`` seconds after they began to train, or
    ``in_save`` to save, which on a busy machine is much later."""
    checkpoints = folder / "run" / "checkpoints"
    pids = [folder / f"pid-{rank}" for rank in range(2)]
    log = folder / "losses-0"
    for path in pids:
        path.unlink(missing_ok=True)
    before = log.stat().st_size if log.exists() else 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_ranks, _train_beside, 2, folder, steps)
        while not future.done() and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.005)
        while in_save and not future.done() and not any(checkpoints.glob(".tmp-step-*")):
            time.sleep(0.001)
        time.sleep(wait)
        for path in pids:
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        is_saving = any(checkpoints.glob(".tmp-step-*"))
        with suppress(RankFailedError, RuntimeError):
            future.result()
    return is_saving


def _losses(folder: Path, rank: int) -> dict[str, set[str]]:
    """What each step gave, over all starts."""
    found: dict[str, set[str]] = {}
    for line in (folder / f"losses-{rank}").read_text().splitlines():
        step, *values = line.split()
        found.setdefault(step, set()).add(" ".join(values))
    return found


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.campaign)])
def test_killed_at_any_instant_of_it_the_run_goes_on_from_a_whole_checkpoint_exactly(
    tmp_path: Path, kills: int
) -> None:
    """A run that gets to its end is followed by another one."""
    runs = [tmp_path / "whole", tmp_path / "0"]
    for folder in runs:
        folder.mkdir()
    run_ranks(_train_beside, 2, runs[0], STEPS, timeout=300)
    generator, in_saves, newest = random.Random(kills), 0, 0
    record = run_record(ZERO_1.config, world_size=2, data_fingerprint={"shard": "toy"})
    for number in range(kills):
        longest = 0.4 if number % 3 == 2 else 0.02
        wait = generator.uniform(0.0, longest)
        in_saves += _run_until_killed(runs[-1], STEPS, wait, in_save=number % 3 != 2)
        checkpoints = runs[-1] / "run" / "checkpoints"
        for folder in checkpoints.glob("step-*"):
            verify_checkpoint(folder)
        point = find_resumable(checkpoints, collectives=SingleProcess(), run=record)
        found = point.step if point is not None else 0
        assert found >= newest
        newest = found
        if newest == STEPS:
            runs.append(tmp_path / str(len(runs)))
            runs[-1].mkdir()
            newest = 0
    assert in_saves >= kills // 2
    run_ranks(_train_beside, 2, runs[-1], STEPS, timeout=300)
    for rank in range(2):
        expected = _losses(runs[0], rank)
        assert len(expected) == STEPS
        assert all(_losses(folder, rank) == expected for folder in runs[1:])
