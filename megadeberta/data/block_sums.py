"""Checksums of the blocks of a token file, ``PREFIX.sum``: what training reads is what ``prep`` wrote.

A block's checksum is the sum of its 32-bit words, each times a fixed odd 64-bit number, modulo 2^64 (multilinear
hashing; Lemire and Kaser, Strongly universal string hashing is fast, 2014). A single changed word is always found, any
other change with probability 1 - 2^-32 or better. Unlike a CRC it is computed for many blocks at once.
"""

# N blocks

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.counter_random import random_words, stream_key

BLOCK_BYTES = 2048
"""A sequence of 512 tokens is about one block or half of one, so little is read beside it."""
SUM_BYTES = 8

_WORDS = BLOCK_BYTES // 4
_GROUP = 256  # blocks whose products stay in the processor's cache
_WEIGHTS = random_words(stream_key(0, "block sums"), np.arange(_WORDS)) | np.uint64(1)


def block_sums(blocks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Checksums ``[N]`` of blocks ``[N, BLOCK_BYTES]``; the last one of a file is filled up with zeros."""
    words = blocks.view("<u4")
    sums = np.empty(len(words), np.uint64)
    for start in range(0, len(words), _GROUP):
        group = words[start : start + _GROUP]
        np.einsum("nw,w->n", group, _WEIGHTS, out=sums[start : start + len(group)], dtype=np.uint64, casting="unsafe")
    return sums


def count_blocks(num_bytes: int) -> int:
    """Blocks of a file of that size."""
    return -(-num_bytes // BLOCK_BYTES)


class SumWriter:
    """Checksums of a stream of bytes."""

    def __init__(self) -> None:
        self._sums: list[NDArray[np.uint64]] = []
        self._rest = b""

    def add(self, payload: bytes | memoryview) -> None:
        """Append ``payload`` to the stream."""
        data = b"".join((self._rest, payload))
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
        self._sums.append(block_sums(np.frombuffer(data, np.uint8, whole).reshape(-1, BLOCK_BYTES)))
        self._rest = data[whole:]

    def finish(self) -> bytes:
        """The file of checksums: one little-endian 64-bit number per block."""
        if self._rest:
            self.add(bytes(BLOCK_BYTES - len(self._rest)))
        return np.concatenate([np.empty(0, np.uint64), *self._sums]).astype("<u8").tobytes()
