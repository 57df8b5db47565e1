"""Where the documents of a token file end, from an index of any size: read in blocks, in memory that does not grow."""

# S sequences · D documents

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.index_layout import HEADER_BYTES, check_mark_ends, check_marks_rise, check_sequences
from megadeberta.data.shard_files import check_index_content, check_index_header
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.steady_file import SteadyFile

NUMBERS_AT_ONCE = 1 << 18


def document_ends(path: Path, manifest: ShardManifest) -> Iterator[NDArray[np.int64]]:
    """The ends of all D documents in their order, ``[NUMBERS_AT_ONCE]`` or fewer at a time, counted in tokens.

    The whole index is checked first.

    Raises:
        DataError: as ``open_index``.
    """
    file = SteadyFile(path, manifest.idx_bytes)
    try:
        check_index_header(path, manifest)
        index = _Arrays(file, manifest)
        index.check()
        yield from index.ends()
    finally:
        file.close()


class _Arrays:
    """The three arrays of an index whose header is the manifest's."""

    def __init__(self, file: SteadyFile, manifest: ShardManifest) -> None:
        self._file = file
        self._manifest = manifest
        self._num_sequences = manifest.num_sequences
        self._pointers_at = HEADER_BYTES + 4 * self._num_sequences
        self._marks_at = HEADER_BYTES + 12 * self._num_sequences
        self._itemsize = np.dtype(manifest.dtype).itemsize

    def check(self) -> None:
        """Every check of ``open_index``: the arrays in their order, for the hash, and lengths beside pointers again."""
        digest, num_tokens, last = hashlib.sha256(self._read("u1", HEADER_BYTES, 0).data), 0, 0
        for first, count in _blocks(self._num_sequences):
            digest.update(self._lengths(first, count).data)
        for first, count in _blocks(self._num_sequences):
            lengths, pointers = self._lengths(first, count), self._pointers(first, count)
            digest.update(pointers.data)
            num_tokens = check_sequences(
                lengths, pointers, self._itemsize, path=self._file.path, first=first, num_tokens=num_tokens
            )
        num_marks = self._manifest.num_documents + 1
        ends = (int(self._marks(0, 1)[0]), int(self._marks(num_marks - 1, 1)[0]))
        check_mark_ends(*ends, self._num_sequences, path=self._file.path)
        for first, count in _blocks(num_marks):
            marks = self._marks(first, count)
            digest.update(marks.data)
            check_marks_rise(marks, path=self._file.path, first=first, before=last)
            last = int(marks[-1])
        counts = (self._manifest.dtype, num_tokens, self._num_sequences, num_marks - 1)
        check_index_content(self._file.path, self._manifest, counts, digest.hexdigest())

    def ends(self) -> Iterator[NDArray[np.int64]]:
        """Of each document: where the sequence begins that its mark names."""
        for first, count in _blocks(self._manifest.num_documents):
            marks = self._marks(first + 1, count)
            ends = np.full(count, self._manifest.num_tokens, np.int64)  # of those with no sequence behind them
            for begin in range(int(marks[0]), min(int(marks[-1]) + 1, self._num_sequences), NUMBERS_AT_ONCE):
                pointers = self._pointers(begin, min(NUMBERS_AT_ONCE, self._num_sequences - begin))
                low, high = np.searchsorted(marks, (begin, begin + len(pointers)))
                ends[low:high] = pointers[marks[low:high] - begin] // self._itemsize
            yield ends

    def _lengths(self, first: int, count: int) -> NDArray[np.int32]:
        return self._read("<i4", count, HEADER_BYTES + 4 * first)

    def _pointers(self, first: int, count: int) -> NDArray[np.int64]:
        return self._read("<i8", count, self._pointers_at + 8 * first)

    def _marks(self, first: int, count: int) -> NDArray[np.int64]:
        return self._read("<i8", count, self._marks_at + 8 * first)

    def _read(self, dtype: str, count: int, offset: int) -> np.ndarray:
        found = np.empty(count, dtype)
        self._file.fill(found, offset)
        return found


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    """First number and count of every block."""
    for first in range(0, total, NUMBERS_AT_ONCE):
        yield first, min(NUMBERS_AT_ONCE, total - first)
