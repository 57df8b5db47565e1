"""The folder in which torch builds C++ extensions: private, one per machine, and free of dead locks.

torch guards a build by a file ``lock`` created with O_EXCL (torch/utils/file_baton.py), without owner or timeout: a
process killed while it builds makes every later start wait forever. The holder keeps that file open, and the
compilers it starts work inside the folder, so a lock that no process has open, in a folder where none works, is dead.
"""

import importlib.metadata
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from megadeberta.errors import ParallelError
from megadeberta.storage import take_lock

logger = logging.getLogger(__name__)

VARIABLE = "TORCH_EXTENSIONS_DIR"
# In a folder that the user chose, other machines may build too; a build takes minutes at most.
SHARED_LOCK_AGE = 600.0
ORPHAN_COMPILER_PATIENCE = 180.0


def prepare_extensions_dir(environ: Mapping[str, str]) -> Path:
    """Make the build folder of this machine ready; the caller sets TORCH_EXTENSIONS_DIR to what is returned.

    The default holds the host name (an extension is built for this host's processor, and the home folder may be shared
    by many), Python's and torch's versions. Every rank may call it at once: they take turns on a file lock.

    Raises:
        ParallelError: the folder is not ours, or a lock in it may belong to another machine.
    """
    chosen = environ.get(VARIABLE)
    folder = Path(chosen) if chosen else _private_folder(environ)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ParallelError(
            f"{folder} belongs to user id {folder.stat().st_uid}, not to you ({os.getuid()}), and code from it would "
            f"run as you; set {VARIABLE} to a folder of your own"
        )
    with _turn(folder):
        remove_dead_locks(folder, shared=bool(chosen))
    return folder


def remove_dead_locks(folder: Path, *, shared: bool) -> list[Path]:
    """Delete the build locks under ``folder`` whose holder is gone, and say so. Returns the deleted paths.

    Args:
        shared: other machines may use the folder; a young lock that nobody here holds is then an error.
    """
    removed = []
    for lock in sorted(folder.glob("*/lock")):
        found = _stat(lock)
        if found is None or not _wait_until_unused(lock, end_compilers=not shared):
            continue
        again = _stat(lock)
        if again is None or again.st_ino != found.st_ino:  # released while we looked; the next one has an owner
            continue
        age = time.time() - found.st_mtime
        if shared and age < SHARED_LOCK_AGE:
            raise ParallelError(
                f"{lock} is {age:.0f} s old and no process of this machine holds it; delete it unless another machine "
                "is building there, and start again"
            )
        lock.unlink(missing_ok=True)
        logger.warning("removed %s, left by a process that was killed while it compiled", lock)
        removed.append(lock)
    return removed


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _private_folder(environ: Mapping[str, str]) -> Path:
    cache = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache")
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache / "megadeberta" / "torch_extensions" / host / f"torch-{importlib.metadata.version('torch')}-{python}"


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    handle = os.open(folder / ".megadeberta-turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        take_lock(handle)
        yield
    finally:
        os.close(handle)


def _wait_until_unused(lock: Path, *, end_compilers: bool) -> bool:
    """Whether the lock is dead. A live holder is left alone; compilers without one are ended or waited for.

    torch runs ninja only while it holds the lock: a ninja in the folder of a lock that nobody holds works for nobody.
    """
    deadline = time.monotonic() + ORPHAN_COMPILER_PATIENCE
    told: set[int] = set()
    while True:
        holders, workers = _users(lock)
        if holders:
            return False
        if not workers:
            return True
        if not told:
            logger.warning("%s is left from a killed run that was compiling; waiting for its compiler to end", lock)
        for pid in set(workers) - told:
            if end_compilers and _command_name(pid) == "ninja":
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)  # it ends the compilers below it
        told.update(workers)
        if time.monotonic() > deadline:
            raise ParallelError(
                f"{lock} is left from a killed run, but process {workers[0]} still works in that folder; end it "
                f"(kill {workers[0]}) and start again"
            )
        time.sleep(0.2)


def _command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _users(lock: Path) -> tuple[list[int], list[int]]:
    """Process ids that have ``lock`` open, and those whose working folder is the lock's."""
    holders, workers = [], []
    lock_name, folder_name = os.path.realpath(lock), os.path.realpath(lock.parent)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        if _link(entry / "cwd") == folder_name:
            workers.append(int(entry.name))
        try:
            opened = list((entry / "fd").iterdir())
        except OSError:  # ended meanwhile, or another user's: that user could not have created our lock
            continue
        if any(_link(handle) == lock_name for handle in opened):
            holders.append(int(entry.name))
    return holders, workers


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
