"""A command that started a process group ends with its own exit code, whatever the group's threads are doing."""

import subprocess
import sys

import pytest

# The threads of gloo have work for seconds when the command ends, and need the interpreter to give each tensor back.
BUSY_GROUP = """
import atexit
import torch
from torch import distributed
from megadeberta import cli
from megadeberta.rank.ending import expect_group_threads
from megadeberta.errors import ConfigError

def command(**options):
    expect_group_threads()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    atexit.register(print, "registered")
    print("written", end=" ")
    whole, copy = torch.ones(2, 2**20)
    kept = [whole[:] for _ in range(2000)]
    for view in kept:
        distributed.all_gather([copy], view, async_op=True)
    {end}

cli.app = command
cli.main()
"""


def _end_with(end: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUSY_GROUP.format(end=end)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("return 75", 75, ""),
        ("return", 0, ""),
        ("raise ConfigError('a reason')", 2, "error: a reason\n"),
        ("raise SystemExit('a reason')", 1, "a reason\n"),
        ("raise SystemExit", 0, ""),
    ],
)
def test_exit_code_and_output_are_those_of_the_command(end: str, code: int, message: str) -> None:
    done = _end_with(end)
    assert (done.returncode, done.stdout, done.stderr) == (code, "written registered\n", message)


def test_bug_keeps_its_traceback_and_code_1() -> None:
    done = _end_with("raise KeyError('a bug')")
    assert (done.returncode, done.stdout) == (1, "written registered\n")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("KeyError: 'a bug'\n")
