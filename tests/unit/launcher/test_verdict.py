"""One exit code and the root cause, from the ends of all ranks."""

import signal

import pytest

from megadeberta.launcher.verdict import RankExit, judge

TERM, KILL, USR1 = signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1


def test_all_zero_is_zero_and_silent() -> None:
    verdict = judge([RankExit(1, 11, 0), RankExit(0, 10, 0)])
    assert (verdict.exit_code, verdict.lines) == (0, ())


def test_killed_rank_is_named_and_its_peers_complaints_are_left_out() -> None:
    verdict = judge([RankExit(0, 10, 80, ("error: lost a peer",)), RankExit(1, 11, -KILL)])
    assert verdict.exit_code == 80
    assert len(verdict.lines) == 1
    assert verdict.lines[0].startswith("error: rank 1 (pid 11) was killed by SIGKILL; ")


def test_same_error_on_all_ranks_is_shown_once() -> None:
    line = "error: r.json: unknown key model.num_head"
    verdict = judge([RankExit(rank, 10 + rank, 2, (line,)) for rank in (2, 0, 1)])
    assert (verdict.exit_code, verdict.lines) == (2, (line,))


def test_first_failure_that_is_not_a_lost_peer_gives_the_code_and_the_first_line() -> None:
    ends = [
        RankExit(2, 12, 80, ("error: connection closed",)),
        RankExit(1, 11, 77, ("error: loss is nan",)),
        RankExit(0, 10, 79, ("error: disk full",)),
    ]
    verdict = judge(ends)
    assert verdict.exit_code == 77
    assert verdict.lines == ("error: loss is nan", "[rank 0] error: disk full")


def test_crash_without_a_line_of_its_own_is_described() -> None:
    verdict = judge([RankExit(1, 11, 1), RankExit(0, 10, -TERM, ended_by_launcher=True)])
    assert verdict.exit_code == 1
    assert verdict.lines == ("error: rank 1 (pid 11) exited with code 1; its last lines are above",)


def test_same_crash_on_two_ranks_is_described_once() -> None:
    verdict = judge([RankExit(1, 11, 1), RankExit(0, 10, 1)])
    assert len(verdict.lines) == 1


@pytest.mark.parametrize(
    "ends",
    [
        [RankExit(0, 10, 75), RankExit(1, 11, 75)],
        [RankExit(0, 10, 75), RankExit(1, 11, -TERM)],
        [RankExit(1, 11, 80), RankExit(0, 10, 75)],
        [RankExit(1, 11, 0), RankExit(0, 10, 75)],
    ],
)
def test_saved_on_a_signal_is_75(ends: list[RankExit]) -> None:
    assert judge(ends, forwarded={TERM}).exit_code == 75


def test_killed_by_a_forwarded_signal_before_training_began_is_75() -> None:
    verdict = judge([RankExit(0, 10, -USR1), RankExit(1, 11, 80, ("error: lost",))], forwarded={USR1})
    assert verdict.exit_code == 75
    assert verdict.lines == ("stopped by SIGUSR1 before training began; the same command resumes",)


def test_killed_by_a_signal_that_was_not_forwarded_is_a_failure() -> None:
    assert judge([RankExit(0, 10, -TERM), RankExit(1, 11, 80)]).exit_code == 80


def test_failed_save_outweighs_the_pre_emption_of_the_others() -> None:
    ends = [RankExit(0, 10, 75), RankExit(1, 11, 79, ("error: disk full",))]
    assert judge(ends, forwarded={TERM}).exit_code == 79


def test_rank_that_had_to_be_killed_is_named_as_the_one_that_hung() -> None:
    verdict = judge([RankExit(0, 10, 80, ("error: timeout",)), RankExit(1, 11, -KILL, ended_by_launcher=True)])
    assert verdict.exit_code == 80
    assert verdict.lines[0].startswith("error: rank 1 (pid 11) hung")
    assert verdict.lines[1] == "error: timeout"


def test_lost_peers_alone_are_80_with_a_line() -> None:
    verdict = judge([RankExit(0, 10, 80)])
    assert verdict.exit_code == 80
    assert verdict.lines == ("error: rank 0 (pid 10) exited with code 80: it lost a peer; the same command resumes",)


def test_signal_without_a_name_is_described() -> None:
    assert RankExit(0, 10, -40).describe() == "rank 0 (pid 10) was killed by signal 40"
