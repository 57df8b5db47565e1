"""One job per output folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.checkpoint import OutputLock, SharedOutputLock
from megadeberta.errors import CheckpointError, StorageError
from tests.unit.checkpoint.rank_threads import on_ranks

HOLDER = """
    import os, sys, time
    from pathlib import Path
    from megadeberta.checkpoint import OutputLock
    with OutputLock(Path(sys.argv[1])):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b".")  # what runs in a child after a fork has run
            time.sleep(30)
            os._exit(0)
        os.read(reader, 1)
        print("held", flush=True)
        time.sleep(60)
"""


def _hold(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_job_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = _hold(tmp_path)
    try:
        message = rf"{tmp_path} is in use by process {holder.pid} on {re.escape(socket.gethostname())} since 2\d\d\d-"
        with pytest.raises(CheckpointError, match=message + r".*wait for it, stop it, or choose another"):
            OutputLock(tmp_path, wait_seconds=0.1).__enter__()
    finally:
        holder.kill()
        holder.wait()


def test_kill_9_frees_the_folder_although_a_forked_child_lives_on(tmp_path: Path) -> None:
    holder = _hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with OutputLock(tmp_path, wait_seconds=20):  # of the 30 that the child lives on
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_a_job_that_is_on_its_way_out_is_waited_for(tmp_path: Path) -> None:
    holder = _hold(tmp_path)
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with OutputLock(tmp_path, wait_seconds=5):
        assert holder.wait(1) == -signal.SIGKILL


def test_the_lock_can_be_taken_again_after_it_is_released(tmp_path: Path) -> None:
    for _ in range(2):
        with OutputLock(tmp_path / "new" / "folder"):
            assert (tmp_path / "new" / "folder" / ".lock").exists()


def test_an_unreadable_lock_file_still_gives_a_clear_error(tmp_path: Path) -> None:
    holder = _hold(tmp_path)
    try:
        (tmp_path / ".lock").write_bytes(b"\xff\xfe not json")
        with pytest.raises(CheckpointError, match="is in use by another process; wait for it"):
            OutputLock(tmp_path, wait_seconds=0).__enter__()
    finally:
        holder.kill()
        holder.wait()


def test_a_folder_that_cannot_be_made_is_a_storage_error_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def enter(collectives):
        with SharedOutputLock(tmp_path / "file" / "out", collectives):
            return "entered"

    for error in on_ranks(enter):
        assert isinstance(error, StorageError)
        assert re.search(r"output folder .*file/out cannot be used: Not a directory .*choose another", str(error))


def test_all_ranks_are_refused_together(tmp_path: Path) -> None:
    holder = _hold(tmp_path)

    def enter(collectives):
        with SharedOutputLock(tmp_path, collectives, wait_seconds=0):
            return "entered"

    try:
        first, second = on_ranks(enter)
    finally:
        holder.kill()
        holder.wait()
    assert isinstance(first, CheckpointError)
    assert isinstance(second, CheckpointError)
    assert str(first) == str(second)
    assert f"process {holder.pid}" in str(first)
    assert on_ranks(enter) == ["entered", "entered"]


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_link_planted_at_the_lock_is_refused_and_its_target_untouched(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me")
    (tmp_path / "out").mkdir()
    plant(tmp_path / "out" / ".lock", target)
    with pytest.raises(StorageError, match="a link to something elsewhere, which is not written to; remove it"):
        OutputLock(tmp_path / "out").__enter__()
    assert target.read_text() == "keep me"
