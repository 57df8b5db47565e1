"""Writing token files, which ``indexed.py`` reads. D documents, T tokens."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from megadeberta.data.beside import Beside
from megadeberta.data.block_sums import SumWriter
from megadeberta.data.index_layout import digest_of_chunks, index_chunks
from megadeberta.data.indexed import largest_id
from megadeberta.data.shard_files import shard_file
from megadeberta.data.shard_manifest import ShardManifest, ShardSource, content_fingerprint
from megadeberta.data.source_list import SUFFIX as SOURCES_SUFFIX
from megadeberta.data.source_list import encode_sources
from megadeberta.errors import DataError
from megadeberta.storage import PendingFile, storage_errors, sync_folder, write_chunks, write_file


class ShardWriter:
    """Writes a shard as a stream: tokens go to disk at once, only the lengths stay in memory.

    Nothing is visible under its final name before ``commit``; leaving the ``with`` block without it removes
    everything that was written.
    """

    def __init__(self, prefix: Path, *, dtype: np.dtype) -> None:
        """Start ``PREFIX.bin``; ``smallest_dtype(vocab_size)`` gives Megatron's choice of ``dtype``."""
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._range = np.iinfo(self._dtype)
        self._lengths = array("i")
        self._marks: array[int] | None = None
        """Where documents end, from the first document on that is not one sequence; before it there is no need."""
        self._largest = -1
        self.num_tokens = 0
        """Tokens so far."""
        self._is_finished = False
        self._digest = hashlib.sha256()
        self._sums = SumWriter()
        self._bin = PendingFile(shard_file(prefix, "bin"))
        self._beside = [Beside(self._bin.write), Beside(self._digest.update), Beside(self._sums.add)]

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return len(self._lengths) if self._marks is None else len(self._marks) - 1

    def add_document(self, tokens: Sequence[int] | np.ndarray, lengths: Sequence[int] | None = None) -> None:
        """Append one document of ``lengths`` sequences (default: one sequence with all its tokens).

        Raises:
            DataError: a token does not fit the dtype, or the lengths do not add up to the tokens.
        """
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() > self._range.max):
            raise DataError(
                f"{self._bin.path}: token ids {ids.min()} to {ids.max()} do not fit {self._dtype.name} "
                f"(0 to {self._range.max}); the vocabulary size given to the writer is too small"
            )
        lengths = [len(ids)] if lengths is None else list(lengths)
        if sum(lengths) != len(ids) or any(length < 0 for length in lengths):
            raise DataError(f"{self._bin.path}: lengths {lengths} do not add up to the document's {len(ids)} tokens")
        self._write(ids.astype(self._dtype))
        if self._marks is None and len(lengths) != 1:
            self._marks = array("q", range(len(self._lengths) + 1))
        self._lengths.extend(lengths)
        if self._marks is not None:
            self._marks.append(len(self._lengths))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append many documents of one sequence each.

        Args:
            tokens: ``[T]`` in the shard's dtype, all documents back to back; not to be changed afterwards.
            lengths: ``[D]`` tokens of each; must add up to ``T``.
        """
        if tokens.dtype != self._dtype or int(lengths.sum(dtype=np.int64)) != len(tokens):
            raise DataError(
                f"{self._bin.path}: {len(tokens)} tokens of {tokens.dtype} for lengths that add up to "
                f"{int(lengths.sum(dtype=np.int64))} of {self._dtype}"
            )
        self._write(tokens)
        first = len(self._lengths)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        if self._marks is not None:
            self._marks.frombytes(np.arange(first + 1, len(self._lengths) + 1, dtype=np.int64).tobytes())

    def finish_tokens(self) -> None:
        """No document comes after this: write ``.bin`` out, still under its temporary name, and close it.

        Raises:
            StorageError: the file system refused.
        """
        if not self._is_finished:
            for work in self._beside:
                work.wait()
            self._bin.finish()
            self._is_finished = True

    def commit(
        self,
        *,
        tokenizer_sha256: str,
        tokenizer_pieces: int,
        options: dict[str, Any] | None = None,
        sources: Sequence[ShardSource] = (),
    ) -> ShardManifest:
        """Publish ``.bin``, ``.sum``, ``.idx`` and, last, the manifest, each synced before it gets its name.

        Of more than ``MOST_IN_MANIFEST`` sources the names go into ``PREFIX.sources``.

        A manifest already there is removed first, so an interrupted replacement never looks whole.

        Raises:
            StorageError: the file system refused; no manifest is left.
        """
        manifest_path = shard_file(self._prefix, "json")
        try:
            self.finish_tokens()
            sums = self._sums.finish()
            manifest = self._describe(
                sums, tokenizer_sha256=tokenizer_sha256, tokenizer_pieces=tokenizer_pieces, options=options or {}
            )
            with storage_errors(manifest_path):
                manifest_path.unlink(missing_ok=True)
                sync_folder(manifest_path.parent)
            self._bin.publish()
            write_file(shard_file(self._prefix, "sum"), sums)
            write_chunks(shard_file(self._prefix, "idx"), self._index())
            return publish_manifest(self._prefix, manifest, sources)
        except BaseException:
            self.discard()
            raise

    def _index(self) -> Iterator[bytes]:
        marks = None if self._marks is None else np.asarray(self._marks)
        return index_chunks(self._dtype, np.asarray(self._lengths), marks)

    def discard(self) -> None:
        """Remove what was written and not committed."""
        for work in self._beside:
            work.stop()
        self._bin.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _write(self, tokens: np.ndarray) -> None:
        if len(tokens) == 0:
            return
        payload = np.ascontiguousarray(tokens).data.cast("B")
        for work in self._beside:
            work.add(payload)
        self._largest = max(self._largest, largest_id(tokens))
        self.num_tokens += len(tokens)

    def _describe(
        self, sums: bytes, *, tokenizer_sha256: str, tokenizer_pieces: int, options: dict[str, Any]
    ) -> ShardManifest:
        idx_sha256, idx_bytes = digest_of_chunks(self._index())
        hashes = {
            "bin_sha256": self._digest.hexdigest(),
            "idx_sha256": idx_sha256,
            "tokenizer_sha256": tokenizer_sha256,
        }
        values = {
            "dtype": self._dtype.name,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_sequences": len(self._lengths),
            "max_token_id": self._largest,
            "tokenizer_pieces": tokenizer_pieces,
            "bin_bytes": self.num_tokens * self._dtype.itemsize,
            "idx_bytes": idx_bytes,
            "sum_sha256": hashlib.sha256(sums).hexdigest(),
            "content": content_fingerprint(dtype=self._dtype.name, **hashes),
            "options": options,
        }
        return ShardManifest.model_validate(values | hashes)


def publish_manifest(prefix: Path, manifest: ShardManifest, sources: Sequence[ShardSource]) -> ShardManifest:
    """Write the manifest with its sources, which go into ``PREFIX.sources`` where they are many.

    Raises:
        StorageError: the file system refused.
    """
    listed, path = encode_sources(sources), shard_file(prefix, SOURCES_SUFFIX)
    named = {"sources": list(sources)} if listed is None else {"source_list": listed[1]}
    if listed is not None:
        write_file(path, listed[0])
    else:
        with storage_errors(path):
            path.unlink(missing_ok=True)
    manifest = manifest.model_copy(update=named)
    write_file(shard_file(prefix, "json"), manifest.to_bytes())
    return manifest
