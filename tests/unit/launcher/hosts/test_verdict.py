"""One exit code and one cause, from what pdsh says about every machine."""

import signal

import pytest

from megadeberta.launcher.hosts.verdict import HostExit, judge_hosts


def test_no_report_and_no_rank_left_is_success() -> None:
    verdict = judge_hosts([], runner_code=0)
    assert (verdict.exit_code, verdict.lines) == (0, ())


@pytest.mark.parametrize(
    ("exits", "code", "line"),
    [
        ([("a", 80), ("b", 247)], 80, "error: a rank on b was killed by SIGKILL; the same command resumes"),
        ([("b", 255), ("a", 80)], 80, "error: the connection to b was lost; the same command resumes"),
        ([("a", 80), ("b", 80)], 80, "error: the ranks on a lost a peer; the same command resumes"),
        ([("a", 80), ("b", 77)], 77, "error: a rank on b ended with code 77; its last lines are above"),
        ([("b", 2), ("a", 79)], 2, "error: a rank on b ended with code 2; its last lines are above"),
        ([("b", 186)], 80, "error: a rank on b was killed by signal 70; the same command resumes"),
    ],
)
def test_root_cause_gives_the_code_and_the_line(exits: list[tuple[str, int]], code: int, line: str) -> None:
    # DeepSpeed's own exit code is pdsh's, the largest of all: it would hide every cause behind a lost peer.
    verdict = judge_hosts([HostExit(*end) for end in exits], runner_code=max(end[1] for end in exits))
    assert (verdict.exit_code, verdict.lines) == (code, (line,))


def test_machine_that_was_ended_by_us_is_no_cause() -> None:
    exits = [HostExit("b", 255), HostExit("a", 247, ended_by_launcher=True)]
    assert judge_hosts(exits, runner_code=255).lines == (
        "error: the connection to b was lost; the same command resumes",
    )


def test_saved_on_a_signal_is_75_although_one_machine_had_not_begun() -> None:
    exits = [HostExit("a", 75), HostExit("b", 256 - signal.SIGTERM)]
    verdict = judge_hosts(exits, runner_code=241, forwarded={signal.SIGTERM})
    assert (verdict.exit_code, verdict.lines) == (75, ())


def test_success_of_deepspeed_with_living_ranks_is_a_lost_pdsh() -> None:
    verdict = judge_hosts([], runner_code=0, left=["a", "b"])
    assert verdict.exit_code == 80
    assert verdict.lines == ("error: pdsh ended before the ranks on a, b, which were killed; the same command resumes",)


@pytest.mark.parametrize(("runner_code", "code"), [(1, 1), (-9, 2)])
def test_failure_of_deepspeed_itself_is_passed_on(runner_code: int, code: int) -> None:
    verdict = judge_hosts([], runner_code=runner_code)
    assert verdict.exit_code == code
    assert verdict.lines == (f"error: DeepSpeed's launcher ended with code {runner_code}; its last lines are above",)
