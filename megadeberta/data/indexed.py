"""Reading token files: ``PREFIX.bin`` (ids back to back), ``PREFIX.idx`` (where each sequence lies), ``PREFIX.sum``
(checksums of the blocks of ``.bin``) and ``PREFIX.json`` (the manifest).

``.bin`` and ``.idx`` are byte-compatible with Megatron-LM's indexed dataset; docs/formats.md has the layout, and
``shard_writer.py`` writes it. S sequences, D documents, T tokens.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from megadeberta.config.data import DEFAULT_CACHE_BYTES
from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.block_sums import BLOCK_BYTES, SUM_BYTES, block_sums, count_blocks
from megadeberta.data.index_blocks import document_ends
from megadeberta.data.remote_bytes import RemoteBytes, local_copy
from megadeberta.data.shard_files import (
    check_index_header,
    check_index_size,
    check_prefix,
    open_index,
    open_sums,
    open_tokens,
    shard_file,
)
from megadeberta.data.shard_manifest import ShardManifest, read_manifest
from megadeberta.data.steady_file import AGAIN, SteadyFile, TokenBytes
from megadeberta.errors import DataError
from megadeberta.remote.path import RemotePath, as_path

_HASH_BLOCK = 8 << 20
_RUNS_AT_ONCE = 256
"""Of a call of ``read_runs``: their blocks stay in the processor's cache between reading and checking."""


class TokenShard:
    """A finished shard, checked when opened and read with ``pread``; nothing of it is mapped into memory.

    Everything returned is a copy, so it outlives ``close``. Reading a file that shrank since, reading out of range
    and reading after ``close`` are ``DataError``; a short file never becomes a signal or foreign memory.
    """

    manifest: ShardManifest
    dtype: np.dtype
    num_tokens: int
    num_documents: int
    num_sequences: int

    def __init__(
        self,
        prefix: Path,
        *,
        manifest: ShardManifest,
        tokens: TokenBytes,
        sums: SteadyFile | None,
        cache: CacheSettings,
    ) -> None:
        """Use ``open``: it makes the checks this constructor relies on."""
        self._prefix = prefix
        self._cache = cache
        self._path = tokens.path
        self.token_bytes = tokens
        self._sums = sums
        self.manifest = manifest
        self.dtype = np.dtype(manifest.dtype)
        self.num_tokens = manifest.num_tokens
        self.num_documents = manifest.num_documents
        self.num_sequences = manifest.num_sequences

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """``[D + 1]`` int64: the first token of each document, and where the last one ends."""
        index = open_index(self._local_index(), self.manifest)
        starts = np.zeros(len(index.lengths) + 1, dtype=np.int64)  # [S + 1]
        np.cumsum(index.lengths, dtype=np.int64, out=starts[1:])
        bounds = starts[index.document_index]
        bounds.setflags(write=False)
        return bounds

    @property
    def document_offsets(self) -> np.ndarray:
        """``[D]`` int64: the first token of each document, counted over all documents laid end to end."""
        return self._bounds[:-1]

    def document_ends(self) -> Iterator[np.ndarray]:
        """``[D]`` int64 in blocks: where each document ends, counted in tokens, after a check of the whole index.

        Unlike ``document_offsets`` in memory that does not grow with the number of documents.

        Raises:
            DataError: the index is damaged, or not what the manifest says.
        """
        return document_ends(self._local_index(), self.manifest)

    @classmethod
    def open(
        cls, prefix: Path, *, verify_hash: bool = False, reads_index: bool = True, cache: CacheSettings | None = None
    ) -> "TokenShard":
        """Open ``PREFIX.bin/.idx/.json`` and check all that can be checked without reading the tokens.

        The index is read whole and compared with its SHA-256.

        Args:
            verify_hash: also read the ``.bin`` and compare its SHA-256 and largest token id.
            reads_index: False = look at its size and header alone until something asks where the documents are: time
                and memory do not grow with their number.
            cache: of a remote shard; None = the usual one.

        Raises:
            DataError: a file is missing, damaged, of another shard, or not what the manifest says.
        """
        prefix = as_path(prefix)
        check_prefix(prefix)
        manifest = read_manifest(shard_file(prefix, "json"))
        cache = cache or CacheSettings.of(None, DEFAULT_CACHE_BYTES)
        if manifest.files:
            from megadeberta.data.joined_shard import JoinedShard

            shard: TokenShard = JoinedShard(prefix, manifest, cache)
        else:
            shard = cls._of_one_file(prefix, manifest, cache)
        try:
            if reads_index:
                _ = shard._bounds
            else:
                shard._check_header()
            if verify_hash:
                shard._verify_tokens()
        except BaseException:
            shard.close()
            raise
        return shard

    @classmethod
    def _of_one_file(cls, prefix: Path, manifest: ShardManifest, cache: CacheSettings) -> Self:
        check_index_size(shard_file(prefix, "idx"), manifest)
        tokens = open_tokens(shard_file(prefix, "bin"), manifest, cache)
        try:
            sums = open_sums(prefix, manifest, cache)
        except BaseException:
            tokens.close()
            raise
        return cls(prefix, manifest=manifest, tokens=tokens, sums=sums, cache=cache)

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``[start, stop)`` of all documents laid end to end, ``[stop - start]`` in the shard's dtype.

        Raises:
            DataError: see ``read_runs``.
        """
        return self.read_runs([(start, stop)])[0]

    def read_runs(self, runs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The tokens ``[start, stop)`` of each run, in the shard's dtype, checked against the sums of their blocks.

        Raises:
            DataError: out of range, closed, the file shrank, or its bytes are not those that were written.
        """
        for start, stop in runs:
            if not 0 <= start <= stop <= self.num_tokens:
                raise DataError(f"{self._path}: tokens [{start}, {stop}) asked, the shard has {self.num_tokens}")
        found = []
        for first in range(0, len(runs), _RUNS_AT_ONCE):
            found += self._read_group(runs[first : first + _RUNS_AT_ONCE])
        return found

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, in the shard's dtype."""
        if not 0 <= number < self.num_documents:
            raise DataError(f"{self._path}: document {number} asked, the shard has {self.num_documents}")
        return self.read_tokens(int(self._bounds[number]), int(self._bounds[number + 1]))

    def close(self) -> None:
        """Release the file; harmless when already closed."""
        self.token_bytes.close()
        if self._sums is not None:
            self._sums.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[Path, CacheSettings]]:
        # A descriptor number means another file in another process; a worker that unpickles opens its own.
        return _reopen, (self._prefix, self._cache)

    def read_ahead(self, runs: Sequence[tuple[int, int]]) -> None:
        """Say which runs ``read_runs`` will be asked for soon: of a remote shard they are fetched meanwhile."""
        if self.is_remote:
            self.token_bytes.ahead([(offset, length) for _, _, offset, length in self._places(runs)])

    @property
    def is_remote(self) -> bool:
        """Whether the tokens are behind an address."""
        return isinstance(self.token_bytes, RemoteBytes)

    @property
    def plan_place(self) -> tuple[Path, Path]:
        """The prefix of its packing plan (its own, or that of the copy of its index), and a file there to lock."""
        index = self._local_index()
        return index.with_suffix("") if self.is_remote else self._prefix, index

    def _local_index(self) -> Path:
        path = shard_file(self._prefix, "idx")
        return local_copy(path, self.manifest.idx_sha256, self._cache) if isinstance(path, RemotePath) else path

    def _places(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
        """Of every run its first block, the number of its blocks, and their offset and length in the file."""
        size, end, found = self.dtype.itemsize, self.manifest.bin_bytes, []
        for start, stop in runs:
            first = start * size // BLOCK_BYTES
            count, offset = count_blocks(stop * size) - first, first * BLOCK_BYTES
            found.append((first, count, offset, min(count * BLOCK_BYTES, end - offset)))
        return found

    def _read_group(self, runs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        size = self.dtype.itemsize
        firsts, counts, offsets, lengths = zip(*self._places(runs), strict=True)
        blocks = np.zeros((sum(counts), BLOCK_BYTES), dtype=np.uint8)
        begins = (np.cumsum((0, *counts[:-1])) * BLOCK_BYTES).tolist()
        flat = blocks.reshape(-1)
        targets = [flat[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]
        self.token_bytes.fill_all(targets, offsets)
        if self._sums is not None and not self._are_written(blocks, firsts, counts):
            # A copy of remote blocks may be what is damaged.
            for offset, length in zip(offsets, lengths, strict=True):
                self.token_bytes.forget(offset, length)
            self.token_bytes.fill_all(targets, offsets)
            self._check_blocks(blocks, firsts, counts)
        found = []
        for (start, stop), first, place in zip(runs, firsts, begins, strict=True):
            begin = place + start * size - first * BLOCK_BYTES
            found.append(flat[begin : begin + (stop - start) * size].view(self.dtype))
        self._check_ids(found, runs)
        return found

    def _are_written(self, blocks: np.ndarray, firsts: Sequence[int], counts: Sequence[int]) -> bool:
        return np.array_equal(self._written_sums(firsts, counts), block_sums(blocks))

    def _written_sums(self, firsts: Sequence[int], counts: Sequence[int]) -> np.ndarray:
        assert self._sums is not None
        expected, place = np.empty(sum(counts), dtype="<u8"), 0
        for first, count in zip(firsts, counts, strict=True):
            self._sums.fill(expected[place : place + count], first * SUM_BYTES)
            place += count
        return expected

    def _check_blocks(self, blocks: np.ndarray, firsts: Sequence[int], counts: Sequence[int]) -> None:
        is_wrong = self._written_sums(firsts, counts) != block_sums(blocks)
        if is_wrong.any():
            numbers = np.concatenate([first + np.arange(count) for first, count in zip(firsts, counts, strict=True)])
            wrong = int(numbers[np.flatnonzero(is_wrong)[0]])
            raise DataError(
                f"{self._path}: bytes [{wrong * BLOCK_BYTES}, {(wrong + 1) * BLOCK_BYTES}) are not those that were "
                f"written: {self.token_bytes.advice}"
            )

    def _check_ids(self, found: list[np.ndarray], runs: Sequence[tuple[int, int]]) -> None:
        largest = max((largest_id(tokens) for tokens in found if len(tokens)), default=-1)
        if largest > self.manifest.max_token_id:
            start, stop = next(
                run for run, ids in zip(runs, found, strict=True) if len(ids) and largest_id(ids) == largest
            )
            raise DataError(
                f"{self._path}: token id {largest} in [{start}, {stop}), the manifest says at most "
                f"{self.manifest.max_token_id}: the file is damaged; {AGAIN}"
            )

    def _check_header(self) -> None:
        check_index_header(shard_file(self._prefix, "idx"), self.manifest)

    def _verify_tokens(self) -> None:
        self._verify_sums()
        digest = hashlib.sha256()
        largest = -1
        step = _HASH_BLOCK // self.dtype.itemsize
        for start in range(0, self.num_tokens, step):
            tokens = np.empty(min(step, self.num_tokens - start), dtype=self.dtype)
            self.token_bytes.fill(tokens, start * self.dtype.itemsize)
            digest.update(tokens.data.cast("B"))
            largest = max(largest, largest_id(tokens))
        if digest.hexdigest() != self.manifest.bin_sha256:
            raise DataError(
                f"{self._path}: SHA-256 {digest.hexdigest()[:12]}…, the manifest says "
                f"{self.manifest.bin_sha256[:12]}…: the tokens changed since they were written; {AGAIN}"
            )
        if largest != self.manifest.max_token_id:
            raise DataError(
                f"{self._path}: largest token id {largest}, the manifest says {self.manifest.max_token_id}; {AGAIN}"
            )

    def _verify_sums(self) -> None:
        if self._sums is None:
            return
        sums = np.empty(count_blocks(self.manifest.bin_bytes), dtype="<u8")
        self._sums.fill(sums, 0)
        if hashlib.sha256(sums.tobytes()).hexdigest() != self.manifest.sum_sha256:
            raise DataError(f"{self._sums.path}: SHA-256 is not the manifest's: the sums changed; {AGAIN}")


def _reopen(prefix: Path, cache: CacheSettings) -> TokenShard:
    return TokenShard.open(prefix, cache=cache)


def largest_id(tokens: np.ndarray) -> int:
    """Largest id, a negative one counting as larger than any: seen as unsigned it has the top bit set."""
    return int(tokens.view(f"u{tokens.dtype.itemsize}").max())
