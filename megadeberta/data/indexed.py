"""Token shards: ``PREFIX.bin`` (ids back to back), ``PREFIX.idx`` (where each sequence lies), ``PREFIX.json``.

Reader and writer are side by side so that they cannot drift. ``.bin`` and ``.idx`` are byte-compatible with
Megatron-LM's indexed dataset; docs/formats.md has the layout. S sequences, D documents, T tokens.
"""

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from megadeberta.data.index_layout import ShardIndex, decode_index, encode_index
from megadeberta.data.shard_manifest import ShardManifest, ShardSource, content_fingerprint, read_manifest
from megadeberta.errors import DataError
from megadeberta.storage import PendingFile, storage_errors, sync_folder, write_file

_HASH_BLOCK = 8 << 20
_AGAIN = "run `megadeberta prep` again"


def shard_file(prefix: Path, suffix: str) -> Path:
    """``PREFIX.bin`` and so on. Dots inside the prefix stay: nothing is stripped."""
    return prefix.with_name(f"{prefix.name}.{suffix}")


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
    document_offsets: np.ndarray
    """``[D]`` int64: the first token of each document, counted over all documents laid end to end."""

    def __init__(self, prefix: Path, *, manifest: ShardManifest, index: ShardIndex, descriptor: int) -> None:
        """Use ``open``: it makes the checks this constructor relies on."""
        self._prefix = prefix
        self._path = shard_file(prefix, "bin")
        self._descriptor = descriptor
        self.manifest = manifest
        self.dtype = index.dtype
        self.num_tokens = manifest.num_tokens
        self.num_documents = manifest.num_documents
        self.num_sequences = manifest.num_sequences
        starts = np.zeros(len(index.lengths) + 1, dtype=np.int64)  # [S + 1]
        np.cumsum(index.lengths, dtype=np.int64, out=starts[1:])
        self._bounds = starts[index.document_index]  # [D + 1]
        self._bounds.setflags(write=False)
        self.document_offsets = self._bounds[:-1]

    @classmethod
    def open(cls, prefix: Path, *, verify_hash: bool = False) -> Self:
        """Open ``PREFIX.bin/.idx/.json`` and check all that can be checked without reading the tokens.

        The index is always read whole and compared with its SHA-256.

        Args:
            verify_hash: also read the ``.bin`` and compare its SHA-256 and largest token id.

        Raises:
            DataError: a file is missing, damaged, of another shard, or not what the manifest says.
        """
        prefix = Path(prefix)
        _check_prefix(prefix)
        manifest = read_manifest(shard_file(prefix, "json"))
        index = _open_index(shard_file(prefix, "idx"), manifest)
        descriptor = _open_tokens(shard_file(prefix, "bin"), manifest)
        shard = cls(prefix, manifest=manifest, index=index, descriptor=descriptor)
        if verify_hash:
            try:
                shard._verify_tokens()
            except BaseException:
                shard.close()
                raise
        return shard

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``[start, stop)`` of all documents laid end to end, ``[stop - start]`` in the shard's dtype.

        Raises:
            DataError: out of range, closed, the file shrank, or a token is larger than the manifest allows.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise DataError(f"{self._path}: tokens [{start}, {stop}) asked, the shard has {self.num_tokens}")
        tokens = np.empty(stop - start, dtype=self.dtype)
        self._fill(tokens, start * self.dtype.itemsize)
        if len(tokens) and _largest(tokens) > self.manifest.max_token_id:
            raise DataError(
                f"{self._path}: token id {_largest(tokens)} in [{start}, {stop}), the manifest says at most "
                f"{self.manifest.max_token_id}: the file is damaged; {_AGAIN}"
            )
        return tokens

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, in the shard's dtype."""
        if not 0 <= number < self.num_documents:
            raise DataError(f"{self._path}: document {number} asked, the shard has {self.num_documents}")
        return self.read_tokens(int(self._bounds[number]), int(self._bounds[number + 1]))

    def close(self) -> None:
        """Release the file; harmless when already closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        # A descriptor number means another file in another process; a worker that unpickles opens its own.
        return _reopen, (self._prefix,)

    def _fill(self, target: np.ndarray, offset: int) -> None:
        """Read the bytes of ``target`` from ``offset``; a short read is an error, never old memory."""
        if self._descriptor < 0:
            raise DataError(f"{self._path}: the shard was closed; open it again to read")
        buffer = target.data.cast("B") if len(target) else memoryview(b"")
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise DataError(f"{self._path}: reading failed ({error.strerror}); check the disk") from error
            if count == 0:
                raise DataError(
                    f"{self._path}: bytes [{offset}, {offset + len(buffer)}) asked, the file now ends at "
                    f"{offset + done} (it had {self.manifest.bin_bytes} when opened): it was cut while in use; {_AGAIN}"
                )
            done += count

    def _verify_tokens(self) -> None:
        digest = hashlib.sha256()
        largest = -1
        step = _HASH_BLOCK // self.dtype.itemsize
        for start in range(0, self.num_tokens, step):
            tokens = np.empty(min(step, self.num_tokens - start), dtype=self.dtype)
            self._fill(tokens, start * self.dtype.itemsize)
            digest.update(tokens.data.cast("B"))
            largest = max(largest, _largest(tokens))
        if digest.hexdigest() != self.manifest.bin_sha256:
            raise DataError(
                f"{self._path}: SHA-256 {digest.hexdigest()[:12]}…, the manifest says "
                f"{self.manifest.bin_sha256[:12]}…: the tokens changed since they were written; {_AGAIN}"
            )
        if largest != self.manifest.max_token_id:
            raise DataError(
                f"{self._path}: largest token id {largest}, the manifest says {self.manifest.max_token_id}; {_AGAIN}"
            )


def _reopen(prefix: Path) -> TokenShard:
    return TokenShard.open(prefix)


def _largest(tokens: np.ndarray) -> int:
    """Largest id, a negative one counting as larger than any: seen as unsigned it has the top bit set."""
    return int(tokens.view(f"u{tokens.dtype.itemsize}").max())


def _check_prefix(prefix: Path) -> None:
    if any(shard_file(prefix, suffix).exists() for suffix in ("bin", "idx", "json")):
        return
    if prefix.is_dir():
        raise DataError(f"{prefix}: is a folder; give the prefix of a shard in it, such as {prefix / 'train'}")
    if prefix.suffix in {".bin", ".idx", ".json"} and prefix.is_file():
        raise DataError(f"{prefix}: give the prefix without the ending: {prefix.with_suffix('')}")
    found = sorted(path.stem for path in prefix.parent.glob("*.idx"))[:5]
    beside = f"; shards in that folder: {', '.join(found)}" if found else ""
    raise DataError(f"{prefix}: no shard here (no {prefix.name}.json){beside}; make one with `megadeberta prep`")


def _open_index(path: Path, manifest: ShardManifest) -> ShardIndex:
    try:
        size = path.stat().st_size
        if size != manifest.idx_bytes:
            raise DataError(f"{path}: {size} bytes, the manifest says {manifest.idx_bytes}; {_AGAIN}")
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found, though its manifest is there; {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    index = decode_index(payload, path=path)
    found = (index.dtype.name, index.num_tokens, len(index.lengths), len(index.document_index) - 1)
    promised = (manifest.dtype, manifest.num_tokens, manifest.num_sequences, manifest.num_documents)
    if found != promised:
        raise DataError(
            f"{path}: dtype, tokens, sequences, documents are {found}, the manifest says {promised}; {_AGAIN}"
        )
    if hashlib.sha256(payload).hexdigest() != manifest.idx_sha256:
        raise DataError(f"{path}: SHA-256 is not the manifest's: the index changed since it was written; {_AGAIN}")
    return index


def _open_tokens(path: Path, manifest: ShardManifest) -> int:
    expected = manifest.num_tokens * np.dtype(manifest.dtype).itemsize
    if expected != manifest.bin_bytes:
        raise DataError(
            f"{path}: {manifest.num_tokens} tokens of {manifest.dtype} are {expected} bytes, "
            f"the manifest says {manifest.bin_bytes}; {_AGAIN}"
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found, though its manifest is there; {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    size = os.fstat(descriptor).st_size
    if size != manifest.bin_bytes:
        os.close(descriptor)
        raise DataError(f"{path}: {size} bytes, the manifest says {manifest.bin_bytes}; {_AGAIN}")
    return descriptor


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
        self._document_index = array("q", [0])
        self._largest = -1
        self._num_tokens = 0
        self._digest = hashlib.sha256()
        self._bin = PendingFile(shard_file(prefix, "bin"))

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
        self._lengths.extend(lengths)
        self._document_index.append(len(self._lengths))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append many documents of one sequence each.

        Args:
            tokens: ``[T]`` in the shard's dtype, all documents back to back.
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
        self._document_index.frombytes(np.arange(first + 1, len(self._lengths) + 1, dtype=np.int64).tobytes())

    def commit(
        self,
        *,
        tokenizer_sha256: str,
        tokenizer_pieces: int,
        options: dict[str, Any] | None = None,
        sources: Sequence[ShardSource] = (),
    ) -> ShardManifest:
        """Publish ``.bin``, ``.idx`` and, last, the manifest, each synced before it gets its name.

        A manifest already there is removed first, so an interrupted replacement never looks whole.

        Raises:
            StorageError: the file system refused; no manifest is left.
        """
        index = encode_index(
            ShardIndex(self._dtype, np.asarray(self._lengths), np.asarray(self._document_index, dtype=np.int64))
        )
        manifest = self._describe(
            index, tokenizer_sha256=tokenizer_sha256, tokenizer_pieces=tokenizer_pieces, options=options or {}
        ).model_copy(update={"sources": list(sources)})
        manifest_path = shard_file(self._prefix, "json")
        try:
            self._bin.finish()
            with storage_errors(manifest_path):
                manifest_path.unlink(missing_ok=True)
                sync_folder(manifest_path.parent)
            self._bin.publish()
            write_file(shard_file(self._prefix, "idx"), index)
            write_file(manifest_path, manifest.to_bytes())
        except BaseException:
            self.discard()
            raise
        return manifest

    def discard(self) -> None:
        """Remove what was written and not committed."""
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
        self._digest.update(payload)
        self._bin.write(payload)
        self._largest = max(self._largest, _largest(tokens))
        self._num_tokens += len(tokens)

    def _describe(
        self, index: bytes, *, tokenizer_sha256: str, tokenizer_pieces: int, options: dict[str, Any]
    ) -> ShardManifest:
        hashes = {
            "bin_sha256": self._digest.hexdigest(),
            "idx_sha256": hashlib.sha256(index).hexdigest(),
            "tokenizer_sha256": tokenizer_sha256,
        }
        values = {
            "dtype": self._dtype.name,
            "num_tokens": self._num_tokens,
            "num_documents": len(self._document_index) - 1,
            "num_sequences": len(self._lengths),
            "max_token_id": self._largest,
            "tokenizer_pieces": tokenizer_pieces,
            "bin_bytes": self._num_tokens * self._dtype.itemsize,
            "idx_bytes": len(index),
            "content": content_fingerprint(dtype=self._dtype.name, **hashes),
            "options": options,
        }
        return ShardManifest.model_validate(values | hashes)
