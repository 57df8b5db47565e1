"""The local copy of remote token files: the blocks of their beginnings, as far as a bounded folder has room.

Samples come in random order, each sequence once an epoch. No rule of eviction beats a fixed set of blocks then, so the
first blocks of a file are kept, as many as there is room for. A cached file is named by the SHA-256 of the whole
remote file and is shared by all processes of a machine and by later runs:

    HASH.blocks   sparse, as long as what is reserved
    HASH.have     a byte per block, 1 where it is there
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from megadeberta.storage import storage_errors, take_lock

CACHE_BLOCK = 1 << 20
_FILL_AT_ONCE = 8


@dataclass(frozen=True)
class CacheSettings:
    """Where blocks are kept, and how many bytes of them."""

    folder: Path
    limit_bytes: int

    @classmethod
    def of(cls, folder: Path | None, limit_bytes: int) -> Self:
        """``folder``: None = below the user's folder for caches."""
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(folder or Path(base) / "megadeberta" / "remote", limit_bytes)


class BlockCache:
    """The blocks of one remote file that this machine has. Safe for any number of processes at once."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        """Use ``open``. ``size``: bytes of the remote file."""
        self._folder, self._name, self._size = folder, name, size
        self._blocks = os.open(folder / f"{name}.blocks", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._blocks, fcntl.LOCK_SH)  # in use: nobody removes it
        self.reserved = os.fstat(self._blocks).st_size
        self._have_file = os.open(folder / f"{name}.have", os.O_RDWR | os.O_CLOEXEC)
        self._have = mmap.mmap(self._have_file, self.num_blocks)

    @classmethod
    def open(cls, settings: CacheSettings, name: str, size: int) -> "BlockCache | None":
        """Reserve room for a file of ``size`` bytes, or for its beginning; None if there is none.

        Files that no process has open make room, those used longest ago first, from their ends.

        Raises:
            StorageError: the folder cannot be written.
        """
        path = settings.folder / f"{name}.blocks"
        with locked(settings.folder), storage_errors(path):
            before = path.stat().st_size if path.exists() else 0
            if before > settings.limit_bytes:  # it was larger in an earlier run
                before = _shortened(path, settings.limit_bytes)
            if before < size:
                room = before + _make_room(settings, size - before, path)
                reserved = size if size <= room else max(before, room // CACHE_BLOCK * CACHE_BLOCK)
                if reserved == 0:
                    return None
                for grown, length in ((path.with_suffix(".have"), -(-reserved // CACHE_BLOCK)), (path, reserved)):
                    with grown.open("ab") as file:
                        file.truncate(length)
            os.utime(path)
            return cls(settings.folder, name, size)

    @property
    def num_blocks(self) -> int:
        """Blocks that there is room for."""
        return -(-self.reserved // CACHE_BLOCK)

    def has(self, offset: int, length: int) -> bool:
        """Whether all of these bytes are here."""
        first, last = offset // CACHE_BLOCK, (offset + length - 1) // CACHE_BLOCK
        if offset + length > self.reserved:
            return False
        return self._have[first] == 1 and (first == last or self._have[first : last + 1].count(1) == last + 1 - first)

    def read(self, target: memoryview, offset: int) -> bool:
        """Fill ``target``; False if the disk gave less."""
        with contextlib.suppress(OSError):
            return os.preadv(self._blocks, [target], offset) == len(target)
        return False

    def forget(self, offset: int, length: int) -> None:
        """Take these bytes for missing: they are not those of the remote file."""
        for block in range(offset // CACHE_BLOCK, min(self.num_blocks, -(-(offset + length) // CACHE_BLOCK))):
            self._have[block] = 0

    def missing(self) -> Iterator[int]:
        """Blocks that are not here, in their order."""
        return (number for number in range(self.num_blocks) if self._have[number] == 0)

    def fill(self, download: Callable[[Sequence[tuple[int, int]]], list[bytes]], goes_on: Callable[[], bool]) -> None:
        """Bring what is missing, unless another process does; returns when nothing is left or ``goes_on`` says no."""
        with self._only_here() as is_alone:
            numbers = list(self.missing()) if is_alone else []
            for first in range(0, len(numbers), _FILL_AT_ONCE):
                if not goes_on():
                    return
                some = numbers[first : first + _FILL_AT_ONCE]
                ranges = [(number * CACHE_BLOCK, min((number + 1) * CACHE_BLOCK, self.reserved)) for number in some]
                for number, content in zip(some, download(ranges), strict=True):
                    os.pwrite(self._blocks, content, number * CACHE_BLOCK)
                    self._have[number] = 1

    def again(self) -> "BlockCache":
        """The same with descriptors of its own, for another thread."""
        return BlockCache(self._folder, self._name, self._size)

    def close(self) -> None:
        """Release the files; harmless when already closed."""
        if self._blocks >= 0:
            self._have.close()
            os.close(self._blocks)
            os.close(self._have_file)
            self._blocks = -1

    def __del__(self) -> None:
        if hasattr(self, "_have"):
            self.close()

    @contextlib.contextmanager
    def _only_here(self) -> Iterator[bool]:
        try:
            fcntl.flock(self._have_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._have_file, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and let no other process change what it holds.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: at worst something is fetched twice
            take_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _make_room(settings: CacheSettings, wanted: int, asking: Path) -> int:
    """Shorten what is not in use until ``wanted`` bytes are free under the limit; how many are."""
    found = sorted(settings.folder.glob("*.blocks"), key=lambda path: path.stat().st_mtime)
    sizes = {path: path.stat().st_size for path in found}
    for path in found:
        lacking = sum(sizes.values()) + wanted - settings.limit_bytes
        if lacking > 0 and path != asking:
            sizes[path] = _shortened(path, max(0, sizes[path] - lacking))
    return max(0, settings.limit_bytes - sum(sizes.values()))


def _shortened(path: Path, most: int) -> int:
    """Cut a file to ``most`` bytes or fewer, unless a process has it open; how many it has then."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return os.fstat(file.fileno()).st_size
        count = most // CACHE_BLOCK
        if count == 0:
            path.unlink()
            path.with_suffix(".have").unlink(missing_ok=True)
        else:
            file.truncate(count * CACHE_BLOCK)
            os.truncate(path.with_suffix(".have"), count)
        return count * CACHE_BLOCK
