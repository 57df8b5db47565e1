"""Writing that survives a power cut: hash while writing, fsync the file, fsync the folder, rename.

Names are never followed through a symbolic link, and a file is never opened that exists already: what is
written here is new, and it becomes visible by a rename or not at all.
"""

import hashlib
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from megadeberta.storage import sync_folder

_CHUNK_BYTES = 1 << 20
_HASH_ASIDE_BYTES = 1 << 18
"""From this size on a second thread pays off."""


class Digest(NamedTuple):
    """Size and SHA-256 (64 hexadecimal digits) of a file."""

    bytes: int
    sha256: str


class HashingFile:
    """A new file that is hashed while it is written; ``finish`` makes it durable and gives the digest.

    It is handed to ``torch.save``, whose C++ writer turns an exception of ``write`` into an unreadable one. So the
    first ``OSError`` is kept, later writes are dropped, and ``finish`` raises it.
    """

    def __init__(self, path: Path) -> None:
        self._error: OSError | None = None
        self._bytes = 0
        self._hash = hashlib.sha256()
        self._path = path
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append and hash; gives the number of bytes taken, which is always all of them."""
        view = memoryview(data).cast("B")
        size = len(view)
        if self._error is None:
            self._bytes += size
            if size < _HASH_ASIDE_BYTES:
                self._hash.update(view)
                self._write_all(view)
            else:  # hashing costs as much as writing; both leave the interpreter, so they share the time
                hashed = self._hasher.submit(self._hash.update, view)
                self._write_all(view)
                hashed.result()
        return size

    def _write_all(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._error = OSError(error.errno, error.strerror, str(self._path))

    def flush(self) -> None:
        """Nothing is buffered."""

    def finish(self) -> Digest:
        """Fsync, close and give the digest.

        Raises:
            OSError: a write or the fsync failed; the file is incomplete.
        """
        try:
            if self._error is not None:
                raise self._error
            os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._hasher.shutdown()
        return Digest(self._bytes, self._hash.hexdigest())


def write_new_file(path: Path, data: bytes) -> Digest:
    """Write, fsync and hash a file that must not exist yet."""
    file = HashingFile(path)
    file.write(data)
    return file.finish()


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: a reader sees the old content or the new one, whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    write_new_file(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


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
        digest = hashlib.sha256()
        size = 0
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
            size += len(block)
    return Digest(size, digest.hexdigest())


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
