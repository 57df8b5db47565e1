"""Writing a set as several token files, none above a limit, which ``joined_shard.py`` reads. D documents, T tokens."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from megadeberta.data.beside import Beside
from megadeberta.data.index_layout import HEADER_BYTES, digest_of_chunks, index_chunks
from megadeberta.data.shard_files import numbered
from megadeberta.data.shard_manifest import FileOfSet, ShardManifest, ShardSource, content_fingerprint
from megadeberta.data.shard_writer import ShardWriter, publish_manifest
from megadeberta.errors import DataError

_INDEX_BYTES = 20
"""Of a document with one sequence: its length, offset and mark."""


class FilesWriter:
    """As ``ShardWriter``, for documents of one sequence, with a new file wherever ``.bin`` or ``.idx`` would grow above
    the limit; no document is cut. Each file is a token file of its own, whole for Megatron too.
    """

    def __init__(self, prefix: Path, *, dtype: np.dtype, max_file_bytes: int) -> None:
        """Start the first file."""
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._limit = max_file_bytes
        self._digest = hashlib.sha256()
        self._beside = Beside(self._digest.update)
        self._lengths: list[np.ndarray] = []
        self._files = [ShardWriter(numbered(prefix, 0), dtype=self._dtype)]

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return sum(file.num_documents for file in self._files)

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """As ``ShardWriter.add_documents``.

        Raises:
            DataError: a document alone is above the limit.
        """
        if len(tokens):
            self._beside.add(np.ascontiguousarray(tokens).data.cast("B"))
        self._lengths.append(lengths.astype(np.int32))
        ends = np.cumsum(lengths, dtype=np.int64)
        first, start = 0, 0
        while first < len(lengths):
            last = self._fitting(ends, first, start)
            if last > first:
                stop = int(ends[last - 1])
                self._files[-1].add_documents(tokens[start:stop], lengths[first:last])
                first, start = last, stop
            if first < len(lengths):
                self._begin_file(int(lengths[first]))

    def commit(
        self,
        *,
        tokenizer_sha256: str,
        tokenizer_pieces: int,
        options: dict[str, Any] | None = None,
        sources: Sequence[ShardSource] = (),
    ) -> ShardManifest:
        """Publish all files, and the manifest of the set last.

        Raises:
            StorageError: the file system refused; there is no manifest of the set then.
        """
        made = {"tokenizer_sha256": tokenizer_sha256, "tokenizer_pieces": tokenizer_pieces}
        try:
            self._beside.wait()
            parts = [file.commit(options=options, **made) for file in self._files]  # type: ignore[arg-type]
            return publish_manifest(self._prefix, self._describe(parts, options or {}), sources)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written and not committed."""
        self._beside.stop()
        for file in self._files:
            file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _fitting(self, ends: np.ndarray, first: int, start: int) -> int:
        """Where the documents end that still fit into the open file; ``first`` if none does."""
        file, item = self._files[-1], self._dtype.itemsize
        room = (self._limit - file.num_tokens * item) // item
        rows = (self._limit - HEADER_BYTES - 8) // _INDEX_BYTES - file.num_documents
        return min(int(np.searchsorted(ends, start + room, side="right")), first + max(rows, 0))

    def _begin_file(self, length: int) -> None:
        if not self._files[-1].num_documents:
            raise DataError(
                f"a document of {length:,} tokens is {length * self._dtype.itemsize:,} bytes, above the largest file "
                f"of {self._limit:,}; choose a larger --max-file-size"
            )
        self._files[-1].finish_tokens()
        self._files.append(ShardWriter(numbered(self._prefix, len(self._files)), dtype=self._dtype))

    def _describe(self, parts: Sequence[ShardManifest], options: dict[str, Any]) -> ShardManifest:
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        idx_sha256, idx_bytes = digest_of_chunks(index_chunks(self._dtype, lengths))
        first = parts[0]
        hashes = {
            "bin_sha256": self._digest.hexdigest(),
            "idx_sha256": idx_sha256,
            "tokenizer_sha256": first.tokenizer_sha256,
        }
        return first.model_copy(
            update={
                **hashes,
                "num_tokens": sum(part.num_tokens for part in parts),
                "num_documents": sum(part.num_documents for part in parts),
                "num_sequences": sum(part.num_sequences for part in parts),
                "max_token_id": max(part.max_token_id for part in parts),
                "bin_bytes": sum(part.bin_bytes for part in parts),
                "idx_bytes": idx_bytes,
                "sum_sha256": None,
                "content": content_fingerprint(dtype=self._dtype.name, **hashes),
                "options": options,
                "files": [
                    FileOfSet(num_tokens=part.num_tokens, num_documents=part.num_documents, content=part.content)
                    for part in parts
                ],
            }
        )


SetWriter = ShardWriter | FilesWriter


def open_writer(prefix: Path, *, dtype: np.dtype, max_file_bytes: int | None) -> SetWriter:
    """A writer of one file, or of several where there is a limit."""
    if max_file_bytes is None:
        return ShardWriter(prefix, dtype=dtype)
    return FilesWriter(prefix, dtype=dtype, max_file_bytes=max_file_bytes)
