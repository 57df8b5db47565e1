"""A rank that the kernel ended for want of memory: the control group says so, in both of its versions."""

from pathlib import Path

import pytest

from megadeberta.launcher.memory_limit import MemoryLimit
from megadeberta.launcher.verdict import RankExit, judge

COUNTERS = {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n", "memory.events": "low 0\nmax 9\noom 1\n"}


@pytest.mark.parametrize(
    ("groups", "folder", "counter", "limit"),
    [
        ("4:memory:/job\n3:cpuset:/\n0::/\n", "memory/job", "memory.oom_control", "memory.limit_in_bytes"),
        ("4:cpu,memory:/of/the/host\n", "memory", "memory.oom_control", "memory.limit_in_bytes"),
        ("0::/slurm/job_7\n", "slurm/job_7", "memory.events", "memory.max"),
        ("0::/of/the/host\n", ".", "memory.events", "memory.max"),
    ],
    ids=["v1", "v1 in a container", "v2", "v2 in a container"],
)
def test_kills_are_counted_from_the_start_of_the_job_on(
    tmp_path: Path, groups: str, folder: str, counter: str, limit: str
) -> None:
    (tmp_path / "groups").write_text(groups)
    group = tmp_path / "root" / folder
    group.mkdir(parents=True)
    (group / counter).write_text(f"{COUNTERS[counter]}oom_kill 3\n")
    (group / limit).write_text("3221225472\n")
    memory = MemoryLimit(groups=tmp_path / "groups", root=tmp_path / "root")
    assert memory.describe_kills() == ""
    (group / counter).write_text(f"{COUNTERS[counter]}oom_kill 5\n")
    said = memory.describe_kills()
    assert said == f"the memory limit of 3.00 GiB of this job's control group ({group}) was reached, oom_kill 2"


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_a_group_without_a_limit_of_its_own_names_none(tmp_path: Path, limit: str) -> None:
    (tmp_path / "groups").write_text("0::/\n")
    (tmp_path / "memory.events").write_text("oom_kill 0\n")
    (tmp_path / "memory.max").write_text(limit)
    memory = MemoryLimit(groups=tmp_path / "groups", root=tmp_path)
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    assert memory.describe_kills().startswith("the memory limit of this job's control group")


def test_without_control_groups_nothing_is_said(tmp_path: Path) -> None:
    assert MemoryLimit(groups=tmp_path / "none", root=tmp_path / "none").describe_kills() == ""


def test_a_killed_rank_is_told_with_the_limit_and_any_other_end_without() -> None:
    reason = "the memory limit was reached"
    killed = RankExit(1, 7, -9, reason=reason)
    assert judge([killed]).lines == (
        f"error: rank 1 (pid 7) was killed by SIGKILL; {reason}; the same command resumes",
    )
    assert reason not in judge([RankExit(1, 7, 1, reason=reason)]).lines[0]
