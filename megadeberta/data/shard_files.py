"""The files of a token file: their names, and each opened and compared with the manifest."""

import glob
import hashlib
import re
from pathlib import Path

import numpy as np

from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.block_sums import SUM_BYTES, count_blocks
from megadeberta.data.index_layout import HEADER_BYTES, ShardIndex, decode_header, decode_index
from megadeberta.data.remote_bytes import RemoteBytes, local_copy
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.steady_file import AGAIN, SteadyFile
from megadeberta.errors import DataError
from megadeberta.remote.path import RemotePath

SUFFIXES = ("bin", "sum", "idx", "json")
"""Of the files of a token file, in the order in which they are published."""


def shard_file(prefix: Path, suffix: str) -> Path:
    """``PREFIX.bin`` and so on. Dots inside the prefix stay: nothing is stripped."""
    return prefix.with_name(f"{prefix.name}.{suffix}")


def numbered(prefix: Path, number: int) -> Path:
    """The prefix of one of several token files that a set of a limited file size consists of."""
    return prefix.with_name(f"{prefix.name}-{number:05d}")


def numbered_files(prefix: Path) -> list[Path]:
    """All files of such prefixes that there are."""
    names = re.compile(rf"{re.escape(prefix.name)}-\d{{5,}}\.({'|'.join((*SUFFIXES, 'sources'))})")
    return [path for path in prefix.parent.glob(f"{glob.escape(prefix.name)}-*") if names.fullmatch(path.name)]


def check_prefix(prefix: Path) -> None:
    """Whether there is a shard of this prefix.

    Raises:
        DataError: there is none; names what is there instead.
    """
    if any(shard_file(prefix, suffix).exists() for suffix in SUFFIXES):
        return
    if prefix.is_dir():
        raise DataError(f"{prefix}: is a folder; give the prefix of a shard in it, such as {prefix / 'train'}")
    if prefix.suffix in {".bin", ".idx", ".json"} and prefix.is_file():
        raise DataError(f"{prefix}: give the prefix without the ending: {prefix.with_suffix('')}")
    found = sorted(path.stem for path in prefix.parent.glob("*.idx"))[:5]
    beside = f"; shards in that folder: {', '.join(found)}" if found else ""
    raise DataError(f"{prefix}: no shard here (no {prefix.name}.json){beside}; make one with `megadeberta prep`")


def check_index_size(path: Path, manifest: ShardManifest) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found, though its manifest is there; {AGAIN}") from error
    if size != manifest.idx_bytes:
        raise DataError(f"{path}: {size} bytes, the manifest says {manifest.idx_bytes}; {AGAIN}")


def check_index_header(path: Path, manifest: ShardManifest) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    dtype, num_sequences, num_marks = decode_header(header, manifest.idx_bytes, path=path)
    found = (dtype.name, num_sequences, num_marks - 1)
    promised = (manifest.dtype, manifest.num_sequences, manifest.num_documents)
    if found != promised:
        raise DataError(f"{path}: dtype, sequences, documents are {found}, the manifest says {promised}; {AGAIN}")


def open_index(path: Path, manifest: ShardManifest) -> ShardIndex:
    check_index_size(path, manifest)
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found, though its manifest is there; {AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    index = decode_index(payload, path=path)
    counts = (index.dtype.name, index.num_tokens, len(index.lengths), len(index.document_index) - 1)
    check_index_content(path, manifest, counts, hashlib.sha256(payload).hexdigest())
    return index


def check_index_content(path: Path, manifest: ShardManifest, counts: tuple[str, int, int, int], sha256: str) -> None:
    """Compare what was read of an index with the manifest.

    Args:
        counts: dtype, tokens, sequences, documents.

    Raises:
        DataError: they differ.
    """
    promised = (manifest.dtype, manifest.num_tokens, manifest.num_sequences, manifest.num_documents)
    if counts != promised:
        raise DataError(
            f"{path}: dtype, tokens, sequences, documents are {counts}, the manifest says {promised}; {AGAIN}"
        )
    if sha256 != manifest.idx_sha256:
        raise DataError(f"{path}: SHA-256 is not the manifest's: the index changed since it was written; {AGAIN}")


def open_tokens(path: Path, manifest: ShardManifest, cache: CacheSettings) -> SteadyFile | RemoteBytes:
    expected = manifest.num_tokens * np.dtype(manifest.dtype).itemsize
    if expected != manifest.bin_bytes:
        raise DataError(
            f"{path}: {manifest.num_tokens} tokens of {manifest.dtype} are {expected} bytes, "
            f"the manifest says {manifest.bin_bytes}; {AGAIN}"
        )
    if isinstance(path, RemotePath):
        return RemoteBytes(path, manifest.bin_bytes, sha256=manifest.bin_sha256, cache=cache)
    return SteadyFile(path, manifest.bin_bytes)


def open_sums(prefix: Path, manifest: ShardManifest, cache: CacheSettings) -> SteadyFile | None:
    """None for a token file made before there were sums: only `megadeberta verify` finds damage to its tokens."""
    if manifest.sum_sha256 is None:
        return None
    path = shard_file(prefix, "sum")
    if isinstance(path, RemotePath):
        path = local_copy(path, manifest.sum_sha256, cache)
    return SteadyFile(path, count_blocks(manifest.bin_bytes) * SUM_BYTES)
