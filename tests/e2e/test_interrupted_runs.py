"""Runs that are killed, stopped or lose a rank, through the real command line; the same command goes on each time."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from megadeberta.checkpoint import verify_checkpoint
from megadeberta.errors import EXIT_PREEMPTED
from tests.e2e.tiny_run import STEPS, finish, losses, start, write_recipe

_SECONDS_A_RUN = 12.0
"""About as long as a whole run takes: instants are drawn from it, so imports, saves and steps are all hit."""


def _kill_all(process: object) -> None:
    """SIGKILL to the launcher and every process below it."""
    parent = psutil.Process(process.pid)
    victims = [parent, *parent.children(recursive=True)]
    for victim in victims:
        if victim.is_running():
            victim.kill()
    psutil.wait_procs(victims, timeout=10)
    process.communicate()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Output folder of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(write_recipe(folder, prepared))
    output = finish(process)
    assert process.returncode == 0, output
    return folder / "run"


@pytest.fixture(scope="module")
def uninterrupted(finished_run: Path) -> list[tuple[int, str, str]]:
    """Its losses and gradient norms."""
    trace = losses(finished_run)
    assert [step for step, _, _ in trace] == list(range(1, STEPS + 1))
    return trace


def _kill_until(kills: int, folder: Path, prepared: Path, seed: int, expected: list[tuple[int, str, str]]) -> None:
    """Kill at ``kills`` random instants, starting the same command again each time; a finished run is replaced by a
    new one. Every finished run must equal the uninterrupted one."""
    rng = random.Random(seed)
    number = 0
    while kills > 0:
        run = folder / f"{number}"
        run.mkdir(exist_ok=True)
        process = start(write_recipe(run, prepared))
        time.sleep(rng.uniform(0.0, _SECONDS_A_RUN))
        if process.poll() is None:
            _kill_all(process)
            kills -= 1
        else:
            output, _ = process.communicate()
            assert process.returncode == 0, output
            assert losses(run / "run") == expected
            number += 1
    process = start(write_recipe(folder / f"{number}", prepared))
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(folder / f"{number}" / "run") == expected


def test_run_killed_at_random_instants_equals_the_uninterrupted_one(
    tmp_path: Path, prepared: Path, uninterrupted: list[tuple[int, str, str]]
) -> None:
    _kill_until(3, tmp_path, prepared, seed=1, expected=uninterrupted)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_fifty_kills_at_random_instants_lose_nothing(
    tmp_path: Path, prepared: Path, uninterrupted: list[tuple[int, str, str]]
) -> None:
    _kill_until(50, tmp_path, prepared, seed=2, expected=uninterrupted)


def _wait_for_step(run: Path, step: int, *, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and len(losses(run)) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached within {timeout} s")


@pytest.mark.parametrize(
    ("number", "asynchronous"),
    [(signal.SIGTERM, False), (signal.SIGUSR1, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.campaign)],
)
def test_signal_saves_exits_with_75_and_the_same_command_resumes(
    tmp_path: Path,
    prepared: Path,
    uninterrupted: list[tuple[int, str, str]],
    number: signal.Signals,
    asynchronous: bool,
) -> None:
    recipe = write_recipe(tmp_path, prepared, checkpoint__asynchronous=asynchronous)
    process = start(recipe)
    _wait_for_step(tmp_path / "run", 2)
    os.kill(process.pid, number)
    output = finish(process, timeout=60)
    assert process.returncode == EXIT_PREEMPTED, output
    assert "the same command resumes" in output
    process = start(recipe)
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == uninterrupted


@pytest.mark.campaign
def test_a_run_that_saves_by_the_clock_keeps_its_losses(
    tmp_path: Path, prepared: Path, uninterrupted: list[tuple[int, str, str]]
) -> None:
    keep = {"interval": 1000, "keep_last": 100, "minutes": 1e-4, "asynchronous": True}
    process = start(write_recipe(tmp_path, prepared, checkpoint=keep))
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == uninterrupted
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) > STEPS // 2
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        verify_checkpoint(folder)


def test_one_killed_rank_ends_the_job_by_name_and_the_same_command_resumes(
    tmp_path: Path, prepared: Path, uninterrupted: list[tuple[int, str, str]]
) -> None:
    recipe = write_recipe(tmp_path, prepared)
    process = start(recipe, "--restarts", "0")
    _wait_for_step(tmp_path / "run", 4)
    ranks = [child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()]
    ranks[1].kill()
    started = time.monotonic()
    output = finish(process, timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode not in (0, EXIT_PREEMPTED)
    assert "rank 1" in output
    assert "SIGKILL" in output
    process = start(recipe)
    output = finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == uninterrupted


def test_run_that_loses_a_rank_starts_again_by_itself(
    tmp_path: Path, prepared: Path, uninterrupted: list[tuple[int, str, str]]
) -> None:
    process = start(write_recipe(tmp_path, prepared))
    _wait_for_step(tmp_path / "run", 4)
    ranks = [child for child in psutil.Process(process.pid).children() if "train" in child.cmdline()]
    ranks[1].kill()
    output = finish(process, timeout=120)
    assert process.returncode == 0, output
    assert f"error: rank 1 (pid {ranks[1].pid}) was killed by SIGKILL" in output
    assert "restart 1 of at most 3 without a new checkpoint" in output
    assert losses(tmp_path / "run") == uninterrupted


def test_every_committed_checkpoint_verifies(finished_run: Path) -> None:
    folders = sorted((finished_run / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-30", "step-32"]
    for folder in folders:
        verify_checkpoint(folder)
