"""Locks of builds that were killed are removed; those of living builds are not."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megadeberta.errors import ParallelError
from megadeberta.rank import extensions
from megadeberta.rank.extensions import prepare_extensions_dir, remove_dead_locks

HOLD_LOCK = (
    "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(60)"
)


def _build_folder(root: Path) -> Path:
    folder = root / "cpu_adam"
    folder.mkdir(parents=True)
    return folder


def _start(code: str, *args: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_lock_of_a_killed_build_is_removed_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = _build_folder(tmp_path) / "lock"
    builder = _start(HOLD_LOCK, lock)
    assert remove_dead_locks(tmp_path, shared=False) == []
    assert lock.exists(), "a living build lost its lock"
    _stop(builder)
    with caplog.at_level(logging.WARNING):
        assert remove_dead_locks(tmp_path, shared=False) == [lock]
    assert not lock.exists()
    assert f"removed {lock}, left by a process that was killed" in caplog.text


def test_compiler_that_outlived_its_holder_is_waited_for(tmp_path: Path) -> None:
    folder = _build_folder(tmp_path)
    (folder / "lock").touch()
    compiler = _start("import time; print('on', flush=True); time.sleep(1)", cwd=folder)
    assert remove_dead_locks(tmp_path, shared=False) == [folder / "lock"]
    assert compiler.poll() is not None or not Path(f"/proc/{compiler.pid}/cwd").exists()
    _stop(compiler)


@pytest.mark.parametrize(("shared", "ended"), [(False, True), (True, False)])
def test_orphaned_ninja_is_ended_in_the_private_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, ended: bool
) -> None:
    folder = _build_folder(tmp_path)
    (folder / "lock").touch()
    monkeypatch.setattr(extensions, "ORPHAN_COMPILER_PATIENCE", 3.0 if ended else 0.3)
    # The name of the process is what counts: /proc/PID/comm is the name of the file that was executed.
    (folder / "ninja").symlink_to("/bin/sleep")
    ninja = subprocess.Popen([folder / "ninja", "60"], cwd=folder)
    try:
        if ended:
            remove_dead_locks(tmp_path, shared=shared)
            assert ninja.wait(timeout=30) == -signal.SIGTERM
        else:
            with pytest.raises(ParallelError, match=rf"process {ninja.pid} still works in that folder"):
                remove_dead_locks(tmp_path, shared=shared)
            assert ninja.poll() is None
    finally:
        ninja.kill()
        ninja.wait()


def test_process_that_stays_in_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _build_folder(tmp_path)
    (folder / "lock").touch()
    monkeypatch.setattr(extensions, "ORPHAN_COMPILER_PATIENCE", 0.1)
    shell = _start("import time; print('on', flush=True); time.sleep(60)", cwd=folder)
    try:
        with pytest.raises(ParallelError, match=rf"process {shell.pid} still works in that folder; end it"):
            remove_dead_locks(tmp_path, shared=False)
    finally:
        _stop(shell)


def test_young_lock_in_a_folder_of_several_machines_is_not_touched(tmp_path: Path) -> None:
    lock = _build_folder(tmp_path) / "lock"
    lock.touch()
    with pytest.raises(ParallelError, match=r"lock is \d+ s old and no process of this machine holds it; delete it"):
        remove_dead_locks(tmp_path, shared=True)
    long_ago = time.time() - extensions.SHARED_LOCK_AGE - 1
    os.utime(lock, (long_ago, long_ago))
    assert remove_dead_locks(tmp_path, shared=True) == [lock]


def test_private_folder_is_per_machine_and_for_the_owner_only(tmp_path: Path) -> None:
    folder = prepare_extensions_dir({"XDG_CACHE_HOME": str(tmp_path)})
    assert folder.is_relative_to(tmp_path / "megadeberta" / "torch_extensions")
    assert os.uname().nodename in folder.parts
    assert folder.stat().st_mode & 0o777 == 0o700
    assert prepare_extensions_dir({"HOME": str(tmp_path)}).is_relative_to(tmp_path / ".cache")


def test_folder_of_the_user_is_kept(tmp_path: Path) -> None:
    assert prepare_extensions_dir({"TORCH_EXTENSIONS_DIR": str(tmp_path / "mine")}) == tmp_path / "mine"


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ParallelError, match=r"belongs to user id \d+, not to you"):
        prepare_extensions_dir({"TORCH_EXTENSIONS_DIR": str(tmp_path)})


def test_a_link_planted_at_the_turn_file_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    folder = tmp_path / "extensions"
    folder.mkdir()
    (folder / ".megadeberta-turn").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        prepare_extensions_dir({extensions.VARIABLE: str(folder)})
    assert precious.read_text() == "keep me"
