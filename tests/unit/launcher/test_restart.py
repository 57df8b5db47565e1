"""When a run is started again, when not, and what the user reads in the end."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from megadeberta.errors import EXIT_HUNG, EXIT_PREEMPTED
from megadeberta.launcher import restart
from megadeberta.launcher.restart import Restarts, newest_checkpoint
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.slurm import SlurmJob
from megadeberta.launcher.verdict import Verdict

LOST = Verdict(80, ("error: rank 1 (pid 7) was killed by SIGKILL",))
DONE = Verdict(0, ())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "_FIRST_PAUSE", 0.01)


class _Run:
    """Starts that end as told; ``checkpoints[n]`` is what ``latest`` names after start n."""

    def __init__(self, verdicts: Sequence[Verdict], checkpoints: Sequence[str] = ()) -> None:
        self.verdicts, self.checkpoints = list(verdicts), list(checkpoints)
        self.starts = 0
        self.newest = ""
        self.said: list[str] = []

    def __call__(self, number: int, inbox: SignalInbox) -> Verdict:
        assert number == self.starts
        self.starts += 1
        if number < len(self.checkpoints):
            self.newest = self.checkpoints[number]
        return self.verdicts[min(number, len(self.verdicts) - 1)]

    def supervise(self, most: int = 3) -> Verdict:
        return Restarts(most, progress=lambda: self.newest, say=self.said.append).run(self)


@pytest.mark.parametrize("code", [80, EXIT_HUNG])
def test_lost_or_hung_rank_is_started_again_and_a_finished_run_is_not(code: int) -> None:
    run = _Run([Verdict(code, ("error: gone",)), DONE], ["step-3"])
    assert (run.supervise(), run.starts) == (DONE, 2)
    assert run.said == [
        "error: gone",
        "starting again in 0 s from step-3: restart 1 of at most 3 without a new checkpoint",
    ]


@pytest.mark.parametrize("code", [0, 2, 75, 77, 79, 81, 130])
def test_end_that_would_come_again_is_final(code: int) -> None:
    verdict = Verdict(code, ("error: it",), trained=True)
    run = _Run([verdict])
    assert (run.supervise(), run.starts) == (verdict, 1)


def test_bug_is_final_before_the_first_step_and_may_be_a_broken_device_after_it() -> None:
    early = _Run([Verdict(1, ("error: it",))])
    assert (early.supervise().exit_code, early.starts) == (1, 1)
    late = _Run([Verdict(1, ("error: it",), trained=True), DONE])
    assert (late.supervise().exit_code, late.starts) == (0, 2)


def test_run_without_progress_ends_after_the_restarts_and_quotes_the_first_error() -> None:
    first = Verdict(80, ("error: rank 0 (pid 5) was killed by SIGBUS",))
    run = _Run([first, LOST], ["step-6", "step-6"])
    verdict = run.supervise()
    assert (verdict.exit_code, run.starts) == (80, 4), "one start and three restarts"
    assert verdict.lines == (
        "error: rank 1 (pid 7) was killed by SIGKILL",
        "error: gave up after 3 restarts without a checkpoint newer than step-6; the first error was: "
        "rank 0 (pid 5) was killed by SIGBUS",
    )


def test_first_error_is_that_since_the_last_checkpoint() -> None:
    verdict = _Run([Verdict(76, ("error: the first",)), LOST]).supervise(most=1)
    assert verdict.lines[-1].endswith("newer than the beginning; the first error was: the first")


def test_progress_starts_the_count_again() -> None:
    run = _Run([LOST] * 9 + [DONE], [f"step-{n}" for n in range(9)])
    assert (run.supervise(most=1).exit_code, run.starts) == (0, 10)


def test_nothing_is_started_again_without_restarts() -> None:
    run = _Run([LOST])
    assert (run.supervise(most=0), run.starts) == (LOST, 1)


def test_run_that_was_told_to_stop_is_not_started_again() -> None:
    class Told(_Run):
        def __call__(self, number: int, inbox: SignalInbox) -> Verdict:
            os.kill(os.getpid(), signal.SIGTERM)
            inbox.take()
            return super().__call__(number, inbox)

    run = Told([LOST])
    assert (run.supervise(), run.starts) == (LOST, 1)


def test_signal_between_two_starts_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "_FIRST_PAUSE", 30.0)
    run = _Run([LOST])
    supervised = Restarts(
        3, progress=lambda: "", say=lambda line: os.kill(os.getpid(), signal.SIGINT) if "again" in line else None
    ).run(run)
    assert supervised.exit_code == EXIT_PREEMPTED
    assert supervised.lines == ("stopped by SIGTERM between two starts; the same command resumes",)


def test_progress_is_the_checkpoint_that_the_pointer_names(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == ""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-9\n")
    assert newest_checkpoint(tmp_path) == "step-9"
    (tmp_path / "checkpoints" / "latest").write_text("")
    assert newest_checkpoint(tmp_path) == ""


def test_limit_is_that_of_the_sbatch_script() -> None:
    assert SlurmJob("a", Path("a"), nodes=1, tasks_per_node=1).most_losses == restart.MOST_RESTARTS
