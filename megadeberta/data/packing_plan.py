"""``PREFIX.packing-L``: where each packed sequence of L tokens starts, and where documents end.

The first process that packs a token file makes it, beside the file; all others, and every later run, open it in almost
no time whatever its size: they read its sums, and of the rest the blocks that a sequence needs, each compared with its
sum. docs/formats.md has the layout. N sequences, D documents that are not empty; all numbers little-endian and 64-bit.
"""

import contextlib
import glob
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.block_sums import BLOCK_BYTES, SUM_BYTES, block_sums, count_blocks
from megadeberta.data.steady_file import SteadyFile
from megadeberta.errors import DataError, StorageError
from megadeberta.storage import PendingFile, take_lock

_HEADER = struct.Struct("<8s32sQQQ")
_MAGIC = b"MDBPACK1"
"""Another number where the same documents would be packed in another way."""
_NUMBERS = BLOCK_BYTES // 8
_WRITE = 1 << 20

Planned = Callable[[], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Gives ``[N + 1]`` starts and ``[D]`` ends, counted in tokens of the file."""


def plan_path(prefix: Path, sequence_length: int) -> Path:
    """Where the plan of a token file is kept."""
    return prefix.with_name(f"{prefix.name}.packing-{sequence_length}")


def remove_plans(prefix: Path) -> None:
    """Remove the plans of a token file that is about to be replaced; one that stays would be found to be of another.

    Raises:
        OSError: the file system refused.
    """
    for path in prefix.parent.glob(f"{glob.escape(prefix.name)}.packing-*"):
        path.unlink(missing_ok=True)


class PackingPlan:
    """A plan on disk; made by ``open``."""

    num_sequences: int

    def __init__(self, file: SteadyFile, shape: tuple[int, int], sums: NDArray[np.uint64], firsts: NDArray[np.int64]):
        """Use ``open``.

        Args:
            shape: N + 1 and D.
            sums: of all blocks.
            firsts: the first number of each block of ends.
        """
        self.num_sequences = shape[0] - 1
        self._file = file
        self._num_ends = shape[1]
        self._start_blocks = count_blocks(8 * shape[0])
        self._sums = sums
        self._firsts = firsts

    @classmethod
    def open(cls, prefix: Path, sequence_length: int, *, idx_sha256: str, lock: Path, planned: Planned) -> Self:
        """Open the plan of a token file, and make it first if it is not there, is damaged, or of another index.

        Of several processes one makes it while the others wait. Where the folder cannot be written the plan is a
        temporary file of this process.

        Args:
            idx_sha256: of the token file's index.
            lock: a file beside the plan that is there already.
            planned: called only if it has to be made.

        Raises:
            DataError, StorageError: it cannot be made.
        """
        path = plan_path(prefix, sequence_length)
        key = _HEADER.pack(_MAGIC, bytes.fromhex(idx_sha256), sequence_length, 0, 0)[:48]
        if plan := cls._load(path, key):
            return plan
        with _only_here(lock):
            if plan := cls._load(path, key):
                return plan
            starts, ends = planned()
            try:
                _write(path, key, starts, ends)
                plan = cls._load(path, key)
            except StorageError:
                with tempfile.TemporaryDirectory() as folder:
                    temporary = Path(folder) / path.name
                    _write(temporary, key, starts, ends)
                    plan = cls._load(temporary, key)
        if plan is None:
            raise DataError(f"{path}: was written and reads otherwise; check the disk")
        return plan

    @classmethod
    def _load(cls, path: Path, key: bytes) -> Self | None:
        """The plan, if it is whole and of this index and length."""
        try:
            with path.open("rb") as opened:
                header = opened.read(_HEADER.size)
            if len(header) < _HEADER.size or header[: len(key)] != key:
                return None
            num_starts, num_ends = _HEADER.unpack(header)[3:]
            start_blocks, end_blocks = count_blocks(8 * num_starts), count_blocks(8 * num_ends)
            blocks = start_blocks + end_blocks
            tail_bytes = SUM_BYTES * blocks + 8 * end_blocks + 32
            file = SteadyFile(
                path, BLOCK_BYTES * (1 + blocks) + tail_bytes
            )  # before memory is taken for a wrong number
            tail = np.empty(tail_bytes, np.uint8)
            file.fill(tail, BLOCK_BYTES * (1 + blocks))
        except (OSError, DataError, MemoryError):
            return None
        content = tail[:-32].tobytes()
        if num_starts == 0 or hashlib.sha256(header + content).digest() != tail[-32:].tobytes():
            file.close()
            return None
        sums = np.frombuffer(content, "<u8", blocks)
        return cls(file, (num_starts, num_ends), sums, np.frombuffer(content, "<i8", end_blocks, SUM_BYTES * blocks))

    def runs(self, chunks: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The tokens ``[start, stop)`` of sequences ``[N]``.

        Raises:
            DataError: the plan was damaged since it was made.
        """
        places = np.stack([chunks, chunks + 1])
        numbers, inside = np.unique(places // _NUMBERS, return_inverse=True)
        values = self._read(numbers)[inside.reshape(places.shape), places % _NUMBERS]
        return list(zip(*values.tolist(), strict=True))

    def borders(self, runs: list[tuple[int, int]]) -> list[NDArray[np.int64]]:
        """Of every run ``[start, stop)`` the ends of documents inside it, without one at ``stop``.

        Raises:
            DataError: the plan was damaged since it was made.
        """
        bounds = np.array(runs, np.int64).reshape(-1, 2) - [0, 1]
        blocks = np.maximum(np.searchsorted(self._firsts, bounds, side="right") - 1, 0)  # [N, 2]
        ranges = [np.arange(first, last + 1) for first, last in blocks.tolist()]
        numbers = np.unique(np.concatenate([np.empty(0, np.int64), *ranges]))
        ends = self._read(numbers + self._start_blocks).reshape(-1)
        places = np.searchsorted(numbers, blocks) * _NUMBERS
        found = []
        for (start, stop), (first, last) in zip(bounds.tolist(), places.tolist(), strict=True):
            inside = ends[first : last + _NUMBERS]
            low, high = np.searchsorted(inside, (start, stop), side="right")
            found.append(inside[low:high])
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[K, numbers of a block]`` of blocks ``[K]``."""
        blocks = np.empty((len(numbers), BLOCK_BYTES), np.uint8)
        for block, number in zip(blocks, numbers.tolist(), strict=True):
            self._file.fill(block, BLOCK_BYTES * (1 + number))
        if not np.array_equal(block_sums(blocks), self._sums[numbers]):
            raise DataError(f"{self._file.path}: is damaged; remove it, and the next start makes it again")
        return blocks.view("<i8")


@contextlib.contextmanager
def _only_here(path: Path) -> Iterator[None]:
    """Hold a file's lock; go on without where the file system has none: at worst a plan is made twice."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            take_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, key: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """The file, whole or not at all."""
    header = key + struct.pack("<QQ", len(starts), len(ends))
    sums, file = [np.empty(0, np.uint64)], PendingFile(path)
    try:
        file.write(header.ljust(BLOCK_BYTES, b"\0"))
        for values in (starts, ends):
            for first in range(0, len(values), _WRITE):
                some = values[first : first + _WRITE].astype("<i8")
                # Blocks are filled up with the largest number, so that a search in one never finds the filling.
                filled = np.pad(some, (0, -len(some) % _NUMBERS), constant_values=np.iinfo(np.int64).max)
                sums.append(block_sums(filled.view(np.uint8).reshape(-1, BLOCK_BYTES)))
                file.write(filled.tobytes())
        tail = np.concatenate(sums).astype("<u8").tobytes() + ends[::_NUMBERS].astype("<i8").tobytes()
        file.write(tail + hashlib.sha256(header + tail).digest())
        file.finish()
        file.publish()
    except BaseException:
        file.discard()
        raise
