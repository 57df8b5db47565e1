"""The order of the samples: global sample g is chunk ``permute(g % n)`` of epoch ``g // n``, and nothing else matters.

A keyed bijection instead of a shuffled array: no index file, no memory that grows with the corpus, and an order that
does not depend on the length of the run, the ranks, the micro batch or the loader's workers.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.counter_random import Words, random_words, stream_key

# Luby and Rackoff need 4 rounds for large halves; tiny halves need more before every order is about equally likely.
_ROUNDS = 16


@dataclass(frozen=True)
class SampleOrder:
    """The order of ``num_chunks`` chunks in every epoch of one seed."""

    seed: int
    num_chunks: int

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and chunk, both ``[N]``, of global samples ``[N]``."""
        epochs, indices = np.divmod(samples, self.num_chunks)
        return epochs, permute(indices, self.num_chunks, stream_key(self.seed, "sample order", epochs))


def permute(indices: NDArray[np.int64], size: int, keys: Words) -> NDArray[np.int64]:
    """Map indices of ``range(size)`` through the permutation of each one's key.

    A generalised Feistel network on a grid of rows x columns that is barely larger than ``size``, walked again
    while the result falls outside (Black and Rogaway: Ciphers with Arbitrary Finite Domains, 2002).

    Args:
        keys: uint64 that broadcasts against ``indices``; the same key gives a bijection of ``range(size)``.
    """
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    keys = np.broadcast_to(keys, indices.shape)
    result = _encipher(indices, rows, columns, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _encipher(result[outside], rows, columns, keys[outside])
        outside = outside[result[outside] >= size]
    return result


def _encipher(indices: NDArray[np.int64], rows: int, columns: int, keys: Words) -> NDArray[np.int64]:
    row, column = (half.astype(np.uint64) for half in np.divmod(indices, columns))
    for turn in range(0, _ROUNDS, 2):
        # The turn is in the high half and the coordinate, below 2**32, in the low one: no counter is used twice.
        row = (row + random_words(keys, column + np.uint64(turn << 32)) % np.uint64(rows)) % np.uint64(rows)
        column = (column + random_words(keys, row + np.uint64((turn + 1) << 32)) % np.uint64(columns)) % np.uint64(
            columns
        )
    return (row * np.uint64(columns) + column).astype(np.int64)
