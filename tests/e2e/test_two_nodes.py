"""The rehearsal on two machines as a test, and that nothing of it is left, however it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_nodes.py")
EXIT_CANNOT_RUN = 2

pytestmark = pytest.mark.campaign


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str], *, timeout: float) -> str:
    """What it printed; skips the test where the machine cannot make two nodes."""
    output, errors = process.communicate(timeout=timeout)
    if process.returncode == EXIT_CANNOT_RUN and "two nodes need" in errors:
        pytest.skip(" ".join(errors.split()))
    return output + errors


def _processes_in(folder: Path) -> list[int]:
    """Processes that have the folder in their command line: sshd, launchers and ranks of the nodes."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:  # it ended meanwhile
            continue
        if str(folder).encode() in line and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def _wait_until_gone(folder: Path, seconds: float) -> Sequence[int]:
    deadline = time.monotonic() + seconds
    while (left := _processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.timeout(2400)
def test_two_nodes_train_like_one_and_survive_the_loss_of_one(tmp_path: Path) -> None:
    process = _start(tmp_path)
    output = _finish(process, timeout=2300)
    assert process.returncode == 0, output
    assert output.count("bit for bit") == 9
    assert _wait_until_gone(tmp_path, 0) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_rehearsal(tmp_path: Path, number: signal.Signals) -> None:
    process = _start(tmp_path, "--case", "pdsh")
    deadline = time.monotonic() + 200
    while not any(_has_words(pid, "launcher.runner") for pid in _processes_in(tmp_path)):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(_finish(process, timeout=10))
        time.sleep(0.1)
    process.send_signal(number)
    output = _finish(process, timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 130), output
    assert _wait_until_gone(tmp_path, 10) == []
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def _has_words(pid: int, words: str) -> bool:
    try:
        return words in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_ordinary_user_is_told_what_is_needed() -> None:
    # In a user namespace of its own, root is nobody, who may still read root's Python.
    as_nobody = ["unshare", "--user"] if os.geteuid() == 0 else []
    command = [*as_nobody, sys.executable, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CANNOT_RUN
    assert re.search(r"error: two nodes need root: making namespaces .* try sudo", done.stderr)
