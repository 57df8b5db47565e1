"""Position scores of one head on a CPU, by skewed reads or by gathers, and their gradients.

Shapes: G samples of a tile · W rows of a window · L keys · Q query rows of the tile · H head size · P table rows ·
R = 2L - 1 distances.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = 64
"""Rows of one window. The product of a window has W + L - 1 columns for L that are read, so that small windows waste
less; below this many the matrix products slow down."""


@dataclass(frozen=True)
class Tile:
    """The samples and the query rows whose scores are computed together."""

    samples: slice
    rows: slice


class SkewedScores:
    """Query row ``i`` is position ``i``, as in self-attention.

    A window's product with the table rows of the W + L - 1 distances that it meets holds each of its scores on a
    diagonal. Read with a row stride one shorter than it was written with, it is the block of scores: no gather.
    """

    def __init__(self, by_falling: Tensor | None, by_rising: Tensor | None) -> None:
        """by_falling: K_r ``[R, H]`` of one head for the distances ``L-1 .. -(L-1)``: along a row of scores the
        distance falls. by_rising: Q_r for ``-(L-1) .. L-1``: along a column it rises."""
        self._by_falling, self._by_rising = by_falling, by_rising
        self._center = (by_rising if by_falling is None else by_falling).size(0) // 2
        self._buffers: dict[tuple[int, ...], Tensor] = {}
        self.table_grads = [None if table is None else torch.zeros_like(table) for table in (by_falling, by_rising)]

    def write(self, scores: Tensor, query: Tensor, key: Tensor, *, tile: Tile) -> None:
        """Set ``scores`` ``[G, Q, L]`` to the position scores of ``query`` ``[G, Q, H]`` and ``key`` ``[G, L, H]``."""
        if self._by_falling is None:
            scores.zero_()
        else:
            for start, size, table in self._query_windows(scores, tile):
                product = _product(query[:, start : start + size], self._by_falling[table].mT)  # [G, W, W + L - 1]
                scores[:, start : start + size] = _skewed(product)
        if self._by_rising is not None:
            for start, size, table in self._key_windows(scores, tile):
                product = _product(key[:, start : start + size], self._by_rising[table].mT)  # [G, W, W + Q - 1]
                scores[:, :, start : start + size] += _skewed(product).mT

    def backward(self, grad: Tensor, query: Tensor, key: Tensor, *, into: tuple[Tensor, Tensor], tile: Tile) -> None:
        """Add to the gradients ``into`` of query and key, and to those of the tables, from ``grad`` ``[G, Q, L]``."""
        grad_query, grad_key = into
        if self._by_falling is not None:
            for start, size, table in self._query_windows(grad, tile):
                window = slice(start, start + size)
                product = self._zero_outside(grad.size(0), size, size + grad.size(2) - 1)
                _skewed(product).copy_(grad[:, window])
                grad_query[:, window] += _product(product, self._by_falling[table])
                _add_table(self.table_grads[0][table], product, query[:, window])
        if self._by_rising is not None:
            for start, size, table in self._key_windows(grad, tile):
                window = slice(start, start + size)
                product = self._zero_outside(grad.size(0), size, size + grad.size(1) - 1)
                _skewed(product).copy_(grad[:, :, window].mT)
                grad_key[:, window] += _product(product, self._by_rising[table])
                _add_table(self.table_grads[1][table], product, key[:, window])

    def _query_windows(self, scores: Tensor, tile: Tile) -> Iterator[tuple[int, int, slice]]:
        num_keys = scores.size(2)
        for start, size in windows(scores.size(1)):
            begin = self._center + 1 - (tile.rows.start + start) - size
            yield start, size, slice(begin, begin + size + num_keys - 1)

    def _key_windows(self, scores: Tensor, tile: Tile) -> Iterator[tuple[int, int, slice]]:
        num_queries = scores.size(1)
        for start, size in windows(scores.size(2)):
            begin = self._center + 1 - size + tile.rows.start - start
            yield start, size, slice(begin, begin + size + num_queries - 1)

    def _zero_outside(self, samples: int, size: int, columns: int) -> Tensor:
        """A buffer that is zero off the diagonals that are written: they are the same for every window of a size."""
        shape = (samples, size, columns)
        if shape not in self._buffers:
            self._buffers[shape] = torch.zeros(shape, dtype=next(t for t in self.table_grads if t is not None).dtype)
        return self._buffers[shape]


class GatheredScores:
    """Queries at positions of their own in every sample: the few masked rows of the mask decoder."""

    def __init__(self, index: Tensor, position_key: Tensor | None, position_query: Tensor | None) -> None:
        """index: table rows, ``[B, Q, L]``. position_key, position_query: ``[P, H]`` of one head."""
        self._index = index
        self._key_table, self._query_table = position_key, position_query
        self.table_grads = [None if t is None else torch.zeros_like(t) for t in (position_key, position_query)]

    def write(self, scores: Tensor, query: Tensor, key: Tensor, *, tile: Tile) -> None:
        """Set ``scores`` ``[G, Q, L]`` to the position scores of ``query`` ``[G, Q, H]`` and ``key`` ``[G, L, H]``."""
        index = self._index[tile.samples, tile.rows]  # [G, Q, L]
        if self._key_table is None:
            scores.zero_()
        else:
            scores.copy_((query @ self._key_table.mT).gather(2, index))  # [G, Q, P] -> [G, Q, L]
        if self._query_table is not None:
            scores += (key @ self._query_table.mT).gather(2, index.mT).mT  # [G, L, P] -> [G, L, Q]

    def backward(self, grad: Tensor, query: Tensor, key: Tensor, *, into: tuple[Tensor, Tensor], tile: Tile) -> None:
        """Add to the gradients ``into`` of query and key, and to those of the tables, from ``grad`` ``[G, Q, L]``."""
        grad_query, grad_key = into
        index = self._index[tile.samples, tile.rows]
        if self._key_table is not None:
            by_row = _scattered(grad, index, self._key_table)  # [G, Q, P]
            grad_query += by_row @ self._key_table
            _add_table(self.table_grads[0], by_row, query)
        if self._query_table is not None:
            by_row = _scattered(grad.mT, index.mT, self._query_table)  # [G, L, P]
            grad_key += by_row @ self._query_table
            _add_table(self.table_grads[1], by_row, key)


def windows(total: int) -> Iterator[tuple[int, int]]:
    """(start, size) of windows that cover ``range(total)``."""
    return ((start, min(WINDOW, total - start)) for start in range(0, total, WINDOW))


def _product(rows: Tensor, table: Tensor) -> Tensor:
    """``[G, W, X] @ [X, C]`` as one matrix product over all samples; torch would broadcast the table instead."""
    return (rows.flatten(0, 1) @ table).unflatten(0, rows.shape[:2])


def _skewed(product: Tensor) -> Tensor:
    """The diagonals of ``[G, W, C]``: element (w, c) of the ``[G, W, C - W + 1]`` view is column ``c - w + W - 1``."""
    samples, size, columns = product.shape
    strides = (size * columns, columns - 1, 1)
    return product.as_strided((samples, size, columns - size + 1), strides, product.storage_offset() + size - 1)


def _scattered(grad: Tensor, index: Tensor, table: Tensor) -> Tensor:
    by_row = grad.new_zeros(*grad.shape[:2], table.size(0))
    return by_row.scatter_add_(2, index, grad)


def _add_table(total: Tensor, product: Tensor, rows: Tensor) -> None:
    """Add to ``total`` ``[P, H]`` the gradient of a table from ``product`` ``[G, W, P]`` and ``rows`` ``[G, W, H]``."""
    total.addmm_(product.flatten(0, 1).mT, rows.flatten(0, 1))
