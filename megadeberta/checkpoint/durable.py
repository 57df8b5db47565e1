"""Files that survive a power cut, and what they weigh: hashed while they are written, fsynced, read back and compared.

Names are never followed through a symbolic link, and a file is never opened that exists already: what is written here
is new, in a folder that becomes visible by a rename or not at all.
"""

import hashlib
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_HASH_ASIDE_BYTES = 1 << 18
"""From this size on a second thread pays off."""


class Digest(NamedTuple):
    """Size and SHA-256 (64 hexadecimal digits) of a file."""

    bytes: int
    sha256: str


class HashingFile:
    """A new file that is hashed while it is written; ``finish`` makes it durable and gives the digest."""

    def __init__(self, path: Path) -> None:
        self._bytes = 0
        self._hash = hashlib.sha256()
        self._path = path
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._hasher.shutdown()

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash.

        Raises:
            OSError: the disk refused; the file is incomplete.
        """
        view = memoryview(data).cast("B")
        self._bytes += len(view)
        if len(view) < _HASH_ASIDE_BYTES:
            self._hash.update(view)
            self._write_all(view)
        else:  # hashing costs as much as writing; both leave the interpreter, so they share the time
            hashed = self._hasher.submit(self._hash.update, view)
            self._write_all(view)
            hashed.result()

    def _write_all(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def finish(self) -> Digest:
        """Fsync and give the digest.

        Raises:
            OSError: the fsync failed.
        """
        os.fsync(self._fd)
        return Digest(self._bytes, self._hash.hexdigest())


def write_new_file(path: Path, data: bytes) -> Digest:
    """Write, fsync and hash a file that must not exist yet."""
    with HashingFile(path) as file:
        file.write(data)
        return file.finish()


def remove_tree(path: Path) -> None:
    """Delete a folder, or only the link when ``path`` is a symbolic link; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)


def hash_file(path: Path) -> Digest:
    """Size and SHA-256 of a regular file.

    Raises:
        OSError: not there, a symbolic link, not a regular file, or unreadable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file", str(path))
        digest = hashlib.file_digest(file, "sha256")
        return Digest(file.tell(), digest.hexdigest())


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file that is not a link.

    Raises:
        OSError: not there, a symbolic link, not a regular file, larger than ``max_bytes``, or unreadable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file", str(path))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(0, f"larger than {max_bytes} bytes", str(path))
    return data


def format_bytes(size: int) -> str:
    """``8400000`` -> ``8.4 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
