"""Files that appear whole or not at all (written under a temporary name, synced, then renamed), and locks on files."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from megadeberta.errors import StorageError, WrongPlaceError

TEMPORARY_PREFIX = ".tmp-"
"""What is not whole yet has a name that begins so."""
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git put where Git LFS did not fetch the one that is meant."""
_LOCK_RETRY_SECONDS = 0.1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISNAMED = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``StorageError`` that names ``path``.

    It is a ``WrongPlaceError`` where the name or the permissions are the reason.

    Args:
        path: what is being written.
        needed: bytes the block has to write, when known.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _MISNAMED:
            raise WrongPlaceError(_misnamed(path, error)) from error
        kind = WrongPlaceError if error.errno in (errno.EACCES, errno.EPERM) else StorageError
        raise kind(_explain(path, error, needed)) from error


def file_in_the_way(path: Path) -> Path | None:
    """What is no folder among those that ``path`` would lie in; None where ``path`` can be made."""
    return next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)


def check_may_write(path: Path) -> None:
    """Refuse a name under which this user can make nothing, before there is anything to write.

    Raises:
        WrongPlaceError: the folder that it would be made in is another user's, or read-only.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise WrongPlaceError(_explain(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), None))


def pointer_note(path: Path) -> str | None:
    """What to say of a file that is a pointer of Git LFS; None of any other."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return None
    return f"{path}: is a pointer of Git LFS and not the file itself; fetch it: git lfs pull" if is_pointer else None


def _misnamed(path: Path, error: OSError) -> str:
    blocking = file_in_the_way(path)
    reason = error.strerror if blocking is None else f"{blocking} is a file"
    return f"cannot write {path}: {reason}; choose another name"


def _explain(path: Path, error: OSError, needed: int | None) -> str:
    if error.errno in _FULL:
        wanted = f"{needed} bytes needed" if needed is not None else "more bytes needed"
        return (
            f"cannot write {path}: {error.strerror} ({wanted}, {free_bytes(path)} free); "
            "make room or choose another folder, then run the same command again"
        )
    if error.errno in _FORBIDDEN:
        return f"cannot write {path}: {error.strerror}; choose a folder this user may write to"
    return f"cannot write {path}: {error.strerror or error}; check the disk, then run the same command again"


def free_bytes(path: Path) -> int:
    """Bytes free on the file system of ``path`` or of its nearest existing parent."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sync_folder(folder: Path) -> None:
    """Make the renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Where ``path`` is written before it is whole: beside it, so that a rename suffices."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}")


def refuse_link(path: Path) -> None:
    """Before something is written in place: nothing there, or something with this one name.

    Raises:
        OSError: a symbolic link, or a file that has another name too, so that a write would change it elsewhere.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
        raise OSError(errno.ELOOP, "a link to something elsewhere, which is not written to; remove it", str(path))


def take_lock(descriptor: int, *, wait_seconds: float | None = None) -> bool:
    """Take the exclusive lock of an open file or folder; whether it was free within ``wait_seconds`` (None: forever).

    The kernel releases it when the last process that shares the descriptor closes it or ends, kill -9 included.

    Raises:
        OSError: this file system has no locks.
    """
    if wait_seconds is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_RETRY_SECONDS)


def _open_new(path: str, flags: int) -> int:
    """Something left or planted under the temporary name, a symbolic link too, must not lead the write elsewhere."""
    Path(path).unlink(missing_ok=True)
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_new(path: Path) -> BinaryIO:
    """An empty file for writing; what has the name, left over or planted, is removed and not written to.

    Raises:
        OSError: the file system refused.
    """
    return open(path, "wb", opener=_open_new)


class PendingFile:
    """A file under a temporary name beside its final one; ``publish`` renames it, ``discard`` removes it.

    ``finish`` (write out and fsync) is apart from ``publish`` so that several files can be finished before the
    first becomes visible. All methods raise ``StorageError``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_path(path)
        with storage_errors(path):
            self._file = open_new(self._temporary)

    def write(self, payload: bytes | memoryview) -> None:
        """Append ``payload``."""
        with storage_errors(self.path, needed=len(payload)):
            self._file.write(payload)

    def replace(self, payload: bytes, offset: int) -> None:
        """Write ``payload`` over bytes that were written before; what comes next is still appended."""
        with storage_errors(self.path, needed=len(payload)):
            self._file.flush()
            os.pwrite(self._file.fileno(), payload, offset)

    def finish(self) -> None:
        """Write out everything and fsync; the file is still under its temporary name."""
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Give the finished file its final name and sync the folder."""
        with storage_errors(self.path):
            os.replace(self._temporary, self.path)
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Close and remove the temporary file, if it is still there."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def write_file(path: Path, payload: bytes) -> None:
    """Write ``payload`` to ``path`` whole or not at all.

    Raises:
        StorageError: the file system refused; ``path`` is as it was.
    """
    write_chunks(path, (payload,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """As ``write_file``, of a payload in pieces."""
    pending = PendingFile(path)
    try:
        for chunk in chunks:
            pending.write(chunk)
        pending.finish()
        pending.publish()
    except BaseException:
        pending.discard()
        raise
