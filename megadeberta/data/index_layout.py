"""The ``.idx`` file of a token file: bytes <-> arrays, and every check that needs no ``.bin``.

The layout is that of Megatron-LM's indexed dataset (megatron/core/datasets/indexed_dataset.py); docs/formats.md has it
as a table. S sequences, D document marks (documents + 1); all little-endian, arrays unaligned after 34 bytes.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadeberta.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
HEADER_BYTES = _HEADER.size
_ENCODED_AT_ONCE = 1 << 16
_AGAIN = "run `megadeberta prep` again"

# Codes 6 and 7 are float64 and float32 in Megatron and the other way round in gpt-neox; token ids are integers, so
# both are refused.
_DTYPE_OF_CODE = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_CODE_OF_DTYPE = {name: code for code, name in _DTYPE_OF_CODE.items()}


@dataclass(frozen=True)
class ShardIndex:
    """A checked index: every sequence is ``lengths[i]`` tokens, one after another from the start of the ``.bin``."""

    dtype: np.dtype
    lengths: np.ndarray  # [S] int32
    document_index: np.ndarray  # [D] int64

    @property
    def num_tokens(self) -> int:
        """Tokens the ``.bin`` must hold."""
        return int(self.lengths.sum(dtype=np.int64))


def smallest_dtype(vocab_size: int) -> np.dtype:
    """Megatron's rule: uint16 below 65500 entries, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def encode_index(index: ShardIndex) -> bytes:
    """The ``.idx`` file for ``index``, byte for byte what Megatron's builder writes."""
    return b"".join(index_chunks(index.dtype, index.lengths, index.document_index))


def index_chunks(dtype: np.dtype, lengths: np.ndarray, marks: np.ndarray | None = None) -> Iterator[bytes]:
    """The same in bounded pieces.

    Args:
        lengths: ``[S]`` int32.
        marks: ``[D]`` int64; None where every sequence is a document of its own.
    """
    num_marks = len(lengths) + 1 if marks is None else len(marks)
    yield _HEADER.pack(MAGIC, VERSION, _CODE_OF_DTYPE[dtype.name], len(lengths), num_marks)
    pieces = [slice(start, start + _ENCODED_AT_ONCE) for start in range(0, len(lengths), _ENCODED_AT_ONCE)]
    for piece in pieces:
        yield lengths[piece].astype("<i4", copy=False).tobytes()
    before = 0
    for piece in pieces:
        ends = before + np.cumsum(lengths[piece], dtype=np.int64)  # exclusive prefix sum over all pieces, in bytes
        pointers = (ends - lengths[piece]) * dtype.itemsize
        before = int(ends[-1])
        yield pointers.astype("<i8", copy=False).tobytes()
    for start in range(0, num_marks, _ENCODED_AT_ONCE):
        stop = min(start + _ENCODED_AT_ONCE, num_marks)
        some = np.arange(start, stop) if marks is None else marks[start:stop]
        yield some.astype("<i8", copy=False).tobytes()


def digest_of_chunks(chunks: Iterable[bytes]) -> tuple[str, int]:
    """SHA-256 of all of them, and their bytes."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def decode_index(payload: bytes, *, path: Path) -> ShardIndex:
    """Check the bytes of an ``.idx`` file and return its arrays (copies).

    Raises:
        DataError: any byte that contradicts another; the message names ``path``, the field and both values.
    """
    dtype, num_sequences, num_marks = decode_header(payload, len(payload), path=path)
    start = HEADER_BYTES
    lengths = np.frombuffer(payload, "<i4", num_sequences, start).astype(np.int32)
    pointers = np.frombuffer(payload, "<i8", num_sequences, start + 4 * num_sequences).astype(np.int64)
    marks = np.frombuffer(payload, "<i8", num_marks, start + 12 * num_sequences).astype(np.int64)
    check_sequences(lengths, pointers, dtype.itemsize, path=path)
    if len(marks) == 0:
        raise DataError(f"{path}: has no document marks, expected 0 to {num_sequences}; {_AGAIN}")
    check_mark_ends(int(marks[0]), int(marks[-1]), num_sequences, path=path)
    check_marks_rise(marks, path=path)
    return ShardIndex(dtype, lengths, marks)


def decode_header(payload: bytes, size: int, *, path: Path) -> tuple[np.dtype, int, int]:
    """dtype, S and D of an ``.idx`` file of ``size`` bytes that begins with ``payload``.

    Raises:
        DataError: as :func:`decode_index`.
    """
    if len(payload) < HEADER_BYTES:
        raise DataError(f"{path}: {len(payload)} bytes, shorter than the {HEADER_BYTES}-byte header; {_AGAIN}")
    magic, version, code, num_sequences, num_marks = _HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise DataError(f"{path}: begins with {magic!r}, not {MAGIC!r}: not an indexed dataset; give the shard prefix")
    if version != VERSION:
        raise DataError(f"{path}: version {version}, only version {VERSION} is known; {_AGAIN}")
    if code not in _DTYPE_OF_CODE:
        raise DataError(f"{path}: dtype code {code} is not an integer type {sorted(_DTYPE_OF_CODE)}; {_AGAIN}")
    expected = HEADER_BYTES + 12 * num_sequences + 8 * num_marks
    if size == expected + num_sequences and num_sequences:
        raise DataError(f"{path}: carries a mode per sequence (multimodal), which is not supported; write text only")
    if size != expected:
        raise DataError(
            f"{path}: header says {num_sequences} sequences and {num_marks} document marks = {expected} bytes, "
            f"the file has {size}; {_AGAIN}"
        )
    return np.dtype(_DTYPE_OF_CODE[code]), num_sequences, num_marks


def check_sequences(
    lengths: np.ndarray, pointers: np.ndarray, itemsize: int, *, path: Path, first: int = 0, num_tokens: int = 0
) -> int:
    """Check a block of an index; returns the tokens before the next one.

    Args:
        lengths: ``[S]``, in tokens.
        pointers: ``[S]``, in bytes.
        first: the number of its first sequence.
        num_tokens: before that one.

    Raises:
        DataError: a length is negative, or a pointer is not the lengths before it.
    """
    if len(lengths) and lengths.min() < 0:
        bad = int(np.argmax(lengths < 0))
        raise DataError(f"{path}: length[{first + bad}]={lengths[bad]} is negative; {_AGAIN}")
    expected = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=expected[1:])
    expected += num_tokens
    after = int(expected[-1])
    expected *= itemsize
    if not np.array_equal(pointers, expected[:-1]):
        bad = int(np.argmax(pointers != expected[:-1]))
        raise DataError(
            f"{path}: pointer[{first + bad}]={pointers[bad]}, the lengths before it add up to {expected[bad]} bytes; "
            f"{_AGAIN}"
        )
    return after


def check_mark_ends(first: int, last: int, num_sequences: int, *, path: Path) -> None:
    """Check the first and the last document mark.

    Raises:
        DataError: they are not 0 and the number of sequences.
    """
    if (first, last) != (0, num_sequences):
        raise DataError(f"{path}: document marks run from {first} to {last}, expected 0 to {num_sequences}; {_AGAIN}")


def check_marks_rise(marks: np.ndarray, *, path: Path, first: int = 0, before: int = 0) -> None:
    """Check a block of document marks ``[D]``, of which ``first`` is the number of the first, after mark ``before``.

    Raises:
        DataError: one is less than the one before it.
    """
    falls = marks < np.append(before, marks[:-1])
    if falls.any():
        bad = int(np.argmax(falls))
        raise DataError(f"{path}: document mark[{first + bad}]={marks[bad]} is less than the one before it; {_AGAIN}")
