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

from megadeberta.config.waiting import Waiting, counted
from megadeberta.data.block_sums import BLOCK_BYTES, SUM_BYTES, block_sums, count_blocks
from megadeberta.data.index_blocks import NUMBERS_AT_ONCE
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing_starts import SequenceStarts
from megadeberta.data.steady_file import SteadyFile
from megadeberta.errors import DataError, StorageError
from megadeberta.storage import PendingFile, storage_errors, take_lock

_HEADER = struct.Struct("<8s32sQQQ")
_KEY_BYTES = 48
"""Of the header: what says whether a plan is of this index and length."""
_MAGIC = b"MDBPACK1"
"""Another number where the same documents would be packed in another way."""
_NUMBERS = BLOCK_BYTES // 8
_COPIED_AT_ONCE = 1 << 20


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
    def open(cls, shard: TokenShard, sequence_length: int) -> Self:
        """Open the plan of a token file, and make it first if it is not there, is damaged, or of another index.

        Of several processes one makes it while the others wait, and both say so if it takes long. Where the folder
        cannot be written the plan is a temporary file of this process.

        Raises:
            DataError, StorageError: it cannot be made.
        """
        prefix, lock = shard.plan_place
        path = plan_path(prefix, sequence_length)
        idx_sha256 = bytes.fromhex(shard.manifest.idx_sha256)
        key = _HEADER.pack(_MAGIC, idx_sha256, sequence_length, 0, 0)[:_KEY_BYTES]
        if plan := cls._load(path, key):
            return plan
        with _only_here(lock, path):
            if plan := cls._load(path, key):
                return plan
            try:
                _make(path, key, shard, sequence_length)
                plan = cls._load(path, key)
            except StorageError:
                with tempfile.TemporaryDirectory() as folder:
                    temporary = Path(folder) / path.name
                    _make(temporary, key, shard, sequence_length)
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
def _only_here(lock: Path, plan: Path) -> Iterator[None]:
    """Hold a file's lock; go on without where the file system has none: at worst a plan is made twice."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            if not take_lock(descriptor, wait_seconds=0.0):
                with Waiting(f"waiting for {plan.name}, which another process makes"):
                    take_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _make(path: Path, key: bytes, shard: TokenShard, sequence_length: int) -> None:
    """The file, whole or not at all. Ends come after all starts, so they wait in a nameless file beside it."""
    file = PendingFile(path)
    try:
        with storage_errors(path), tempfile.TemporaryFile(dir=path.parent) as waiting:
            file.write(bytes(BLOCK_BYTES))
            starts, ends = _BlockWriter(file.write), _BlockWriter(waiting.write)
            with Waiting(f"planning packed sequences, once: {path.name}"):
                _plan(shard, sequence_length, starts, ends)
            waiting.seek(0)
            while payload := waiting.read(_COPIED_AT_ONCE):
                file.write(payload)
        header = key + struct.pack("<QQ", starts.count, ends.count)
        file.replace(header, 0)
        tail = starts.sums() + ends.sums() + ends.firsts()
        file.write(tail + hashlib.sha256(header + tail).digest())
        file.finish()
        file.publish()
    except BaseException:
        file.discard()
        raise


def _plan(shard: TokenShard, sequence_length: int, starts: "_BlockWriter", ends: "_BlockWriter") -> None:
    """Give the writers where sequences start and documents end; those that are empty are left out."""
    planned, before = SequenceStarts(sequence_length), 0
    most = shard.num_documents // NUMBERS_AT_ONCE + max(1, len(shard.manifest.files))
    for some in counted(shard.document_ends(), total=most):
        filled = some[np.diff(some, prepend=before) > 0]
        before = int(some[-1])
        for found in planned.add(filled):
            starts.add(found)
        ends.add(filled)
    starts.add(planned.finish())
    starts.finish()
    ends.finish()


class _BlockWriter:
    """Numbers, written in blocks, with what the tail of the file says of each."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.count = 0
        self._write = write
        self._rest = np.empty(0, "<i8")
        self._sums: list[NDArray[np.uint64]] = []
        self._firsts: list[NDArray[np.int64]] = []

    def add(self, values: NDArray[np.int64]) -> None:
        """Append numbers ``[N]``."""
        self.count += len(values)
        values = np.concatenate([self._rest, values])
        whole = len(values) - len(values) % _NUMBERS
        self._put(values[:whole])
        self._rest = values[whole:]

    def finish(self) -> None:
        """Fill up the last block with the largest number, so that a search in it never finds the filling."""
        self._put(np.pad(self._rest, (0, -len(self._rest) % _NUMBERS), constant_values=np.iinfo(np.int64).max))

    def sums(self) -> bytes:
        """Of every block, 64 bits each."""
        return b"".join(sums.astype("<u8").tobytes() for sums in self._sums)

    def firsts(self) -> bytes:
        """The first number of every block."""
        return b"".join(firsts.tobytes() for firsts in self._firsts)

    def _put(self, values: NDArray[np.int64]) -> None:
        blocks = values.view(np.uint8).reshape(-1, BLOCK_BYTES)
        self._sums.append(block_sums(blocks))
        self._firsts.append(values[::_NUMBERS].copy())
        self._write(blocks.tobytes())
