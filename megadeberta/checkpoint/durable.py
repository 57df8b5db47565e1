"""Files that survive a power cut, and what they weigh: hashed while they are written, fsynced, read back and compared.

Names are never followed through a link: what is written here is new, in a folder that becomes visible by a rename or
not at all. A file that exists is written to only by the processes that share it, each its own part.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

_HASH_ASIDE_BYTES = 1 << 18
"""From this size on a second thread pays off."""
_READ_BYTES = 1 << 20


class Digest(NamedTuple):
    """Size and SHA-256 (64 hexadecimal digits) of a file."""

    bytes: int
    sha256: str


class HashingFile:
    """A file that is hashed while it is written; ``finish`` makes it durable and gives the digest."""

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        """``is_new``: it must not exist yet; else it must, as a file with no other name, and keeps what it has.

        Raises:
            OSError: the disk refused, or another name leads there.
        """
        self._bytes = 0
        self._hash = hashlib.sha256()
        self._path = path
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        if is_new:
            self._fd = _open_new(path)
        else:
            self._fd = _open_regular(path, os.O_WRONLY)
            if os.fstat(self._fd).st_nlink != 1:
                os.close(self._fd)
                raise OSError(errno.ELOOP, "has another name too, so that a write would change it elsewhere", str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._hasher.shutdown()

    def go_to(self, offset: int) -> None:
        """Write from here on; what lies there is overwritten."""
        os.lseek(self._fd, offset, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        """Write behind what was written last, and hash.

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
        with self._named_errors():
            while view:
                view = view[os.write(self._fd, view) :]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Calls on a descriptor do not know of which file it is."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def take_digest(self) -> Digest:
        """Of what was written since the last call; not durable yet."""
        digest = Digest(self._bytes, self._hash.hexdigest())
        self._bytes, self._hash = 0, hashlib.sha256()
        return digest

    def finish(self) -> Digest:
        """Fsync, and give the digest of what was written since the last ``take_digest``.

        Raises:
            OSError: the fsync failed.
        """
        with self._named_errors():
            os.fsync(self._fd)
        return self.take_digest()


def create_empty(path: Path) -> None:
    """A file that must not exist yet."""
    os.close(_open_new(path))


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
    with open(_open_regular(path, os.O_RDONLY), "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return Digest(file.tell(), digest.hexdigest())


def hash_parts(path: Path, parts: Iterable[tuple[int, int]]) -> Iterator[str]:
    """SHA-256 of parts of a regular file, each ``(offset, bytes)``; what lies behind its end is no part of it.

    Raises:
        OSError: as ``hash_file``.
    """
    with open(_open_regular(path, os.O_RDONLY), "rb", buffering=0) as file:
        buffer = memoryview(bytearray(_READ_BYTES))
        for offset, size in parts:
            file.seek(offset)
            digest, left = hashlib.sha256(), size
            while left and (count := file.readinto(buffer[: min(left, len(buffer))])):
                digest.update(buffer[:count])
                left -= count
            yield digest.hexdigest()


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file that is not a link.

    Raises:
        OSError: not there, a symbolic link, not a regular file, larger than ``max_bytes``, or unreadable.
    """
    with open_to_read(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(0, f"larger than {max_bytes} bytes", str(path))
    return data


def open_to_read(path: Path) -> BinaryIO:
    """A regular file that is not a link.

    Raises:
        OSError: not there, a symbolic link, not a regular file, or unreadable.
    """
    return open(_open_regular(path, os.O_RDONLY), "rb")


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _open_regular(path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file", str(path))
    return fd


def format_bytes(size: int) -> str:
    """``8400000`` -> ``8.4 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
