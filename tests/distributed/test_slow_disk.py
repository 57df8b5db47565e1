"""A disk whose every fsync takes longer than some steps: training that saves beside itself never waits for one."""

import os
import threading
from pathlib import Path
from typing import Any

from megadeberta.engine.whole_step import WholeStepper
from megadeberta.preflight.run import prepare_run
from megadeberta.rank.environment import apply, detect_ranks
from megadeberta.rank.heartbeat import Heartbeat
from tests.e2e.tiny_run import write_recipe
from tests.ranks import run_ranks

INTERVAL, STEPS = 50, 99
MEANWHILE = 3
"""Steps that an fsync takes; a save has about a dozen of them, one after the other."""


def _train(rank: int, world_size: int, recipe: Path) -> list[tuple[bool, int]]:
    """As `megadeberta train` does. Of each fsync between the first step and the last: whether the thread that trains
    called it, and how many steps were done until it came back."""
    from megadeberta.train import train

    found: list[tuple[bool, int]] = []
    trained, has_trained = 0, threading.Condition()
    launch, sync = WholeStepper.launch_step, os.fsync

    def counted(self: WholeStepper, *batches: Any, **more: Any) -> Any:
        nonlocal trained
        with has_trained:
            trained += 1
            has_trained.notify_all()
        return launch(self, *batches, **more)

    def slow(target: int) -> None:
        trains, before = threading.current_thread() is threading.main_thread(), trained
        if not trains:
            with has_trained:  # a step that waits for this one comes only when the time is over
                has_trained.wait_for(lambda: trained >= before + MEANWHILE, timeout=20)
        if 0 < before < STEPS:
            found.append((trains, trained - before))
        sync(target)

    WholeStepper.launch_step, os.fsync = counted, slow  # type: ignore[method-assign]
    ranks = detect_ranks(os.environ)
    prepared = prepare_run(recipe, [], world_size=world_size)
    os.environ.update(apply(os.environ))
    assert train(prepared, ranks, Heartbeat(rank)) == 0
    return found


def test_no_step_waits_for_an_fsync_of_a_save_beside_training(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        prepared,
        training__steps=STEPS,
        training__eval_interval=1000,
        checkpoint={"interval": INTERVAL, "asynchronous": True},
    )
    (found,) = run_ranks(_train, 1, recipe, distributed=False)
    assert len(found) >= 6, "files, their folders and the pointer"
    assert all(not trains and steps >= MEANWHILE for trains, steps in found), found
