"""Position scores of one head on a CPU, by skewed reads or by gathers, and their gradients.

Shapes: G samples of a tile · W rows of a window · L keys · Q query rows of the tile · H head size · P table rows ·
R = 2L - 1 distances.
"""

from collections.abc import Iterator, Sequence
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


class Scratch:
    """Buffers that the windows of all heads of a call use in turn."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._zeroed: dict[tuple[int, ...], Tensor] = {}
        self._products: dict[tuple[int, ...], Tensor] = {}

    def zero_outside(self, *shape: int) -> Tensor:
        """A buffer that is zero off the diagonals that are written: they are the same for every window of a size."""
        if shape not in self._zeroed:
            self._zeroed[shape] = torch.zeros(shape, dtype=self._dtype)
        return self._zeroed[shape]

    def product(self, rows: Tensor, table: Tensor) -> Tensor:
        """``[G, W, H]`` times ``[C, H]`` transposed: ``[G, W, C]``, valid until the next call."""
        shape = (*rows.shape[:2], table.size(0))
        if shape not in self._products:
            self._products[shape] = torch.empty(shape, dtype=self._dtype)
        return torch.bmm(rows, _for_each(rows, table.mT), out=self._products[shape])


class SkewedScores:
    """Query row ``i`` is position ``i``, as in self-attention.

    A window's product with the table rows of the W + L - 1 distances that it meets holds each of its scores on a
    diagonal. Read with a row stride one shorter than it was written with, it is the block of scores: no gather.

    Three queries at positions 0, 1, 2 and four keys; columns are distances, and what is read is marked by its key::

        distance    2  1  0 -1 -2 -3
        query 0     .  .  0  1  2  3
        query 1     .  0  1  2  3  .
        query 2     0  1  2  3  .  .

    Memory in order is one row after the other, so that a step of one row less one column goes down the diagonal.
    """

    def __init__(
        self,
        by_falling: Tensor | None,
        by_rising: Tensor | None,
        *,
        table_grads: Sequence[Tensor | None],
        scratch: Scratch,
    ) -> None:
        """by_falling: K_r ``[R, H]`` of one head for the distances ``L-1 .. -(L-1)``: along a row of scores the
        distance falls. by_rising: Q_r for ``-(L-1) .. L-1``: along a column it rises. table_grads: of both, or None
        where there will be no backward pass."""
        self._by_falling, self._by_rising = by_falling, by_rising
        either = by_rising if by_falling is None else by_falling
        assert either is not None
        self._center = either.size(0) // 2
        self._table_grads, self._scratch = table_grads, scratch

    def write(self, scores: Tensor, query: Tensor, key: Tensor, *, tile: Tile) -> None:
        """Set ``scores`` ``[G, Q, L]`` to the position scores of ``query`` ``[G, Q, H]`` and ``key`` ``[G, L, H]``."""
        if self._by_falling is None:
            scores.zero_()
        else:
            for start, size, table in self._query_windows(scores, tile):
                product = self._scratch.product(
                    query[:, start : start + size], self._by_falling[table]
                )  # [G, W, W + L - 1]
                scores[:, start : start + size] = _skewed(product)
        if self._by_rising is not None:
            for start, size, table in self._key_windows(scores, tile):
                product = self._scratch.product(
                    key[:, start : start + size], self._by_rising[table]
                )  # [G, W, W + Q - 1]
                # Keys are the rows of this product, so the block comes transposed: see docs/kernels.md for its cost.
                scores[:, :, start : start + size] += _skewed(product).mT

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, *, into: tuple[Tensor, Tensor], tile: Tile, scale: float
    ) -> None:
        """Add to the gradients ``into`` of query and key, and to those of the tables, from ``scale * grad``
        ``[G, Q, L]``."""
        grad_query, grad_key = into
        falling_grad, rising_grad = self._table_grads
        if self._by_falling is not None:
            assert falling_grad is not None
            for start, size, table in self._query_windows(grad, tile):
                window = slice(start, start + size)
                product = self._scratch.zero_outside(grad.size(0), size, size + grad.size(2) - 1)
                # The transpose of the skewed read is the skewed write. With zeros beside the diagonals, both gradients
                # are then ordinary products over all distances.
                _skewed(product).copy_(grad[:, window])
                _add_product(grad_query[:, window], product, self._by_falling[table], scale)
                _add_table(falling_grad[table], product, query[:, window], scale)
        if self._by_rising is not None:
            assert rising_grad is not None
            for start, size, table in self._key_windows(grad, tile):
                window = slice(start, start + size)
                product = self._scratch.zero_outside(grad.size(0), size, size + grad.size(1) - 1)
                _skewed(product).copy_(grad[:, :, window].mT)
                _add_product(grad_key[:, window], product, self._by_rising[table], scale)
                _add_table(rising_grad[table], product, key[:, window], scale)

    def _query_windows(self, scores: Tensor, tile: Tile) -> Iterator[tuple[int, int, slice]]:
        """(start, size, table rows) of windows of the tile's queries. The first column is the largest distance, that of
        the last query to key 0; distance d is row ``center - d`` of the falling table."""
        num_keys = scores.size(2)
        for start, size in windows(scores.size(1)):
            begin = self._center + 1 - (tile.rows.start + start) - size
            yield start, size, slice(begin, begin + size + num_keys - 1)

    def _key_windows(self, scores: Tensor, tile: Tile) -> Iterator[tuple[int, int, slice]]:
        """(start, size, table rows) of windows of keys. The first column is the smallest distance, that of the tile's
        first query to the last key; distance d is row ``center + d`` of the rising table."""
        num_queries = scores.size(1)
        for start, size in windows(scores.size(2)):
            begin = self._center + 1 - size + tile.rows.start - start
            yield start, size, slice(begin, begin + size + num_queries - 1)


class GatheredScores:
    """Queries at positions of their own in every sample: the few masked rows of the mask decoder.

    Their scores are on no diagonals, but they are few: each is looked up, in products over the rows of the table.
    """

    def __init__(
        self,
        index: Tensor,
        position_key: Tensor | None,
        position_query: Tensor | None,
        *,
        table_grads: Sequence[Tensor | None],
    ) -> None:
        """index: table rows, ``[B, Q, L]``. position_key, position_query: ``[P, H]`` of one head. table_grads: of both,
        or None where there will be no backward pass."""
        self._index = index
        self._key_table, self._query_table = position_key, position_query
        self._table_grads = table_grads

    def write(self, scores: Tensor, query: Tensor, key: Tensor, *, tile: Tile) -> None:
        """Set ``scores`` ``[G, Q, L]`` to the position scores of ``query`` ``[G, Q, H]`` and ``key`` ``[G, L, H]``."""
        index = self._index[tile.samples, tile.rows]  # [G, Q, L]
        if self._key_table is None:
            scores.zero_()
        else:
            scores.copy_((query @ self._key_table.mT).gather(2, index))  # [G, Q, P] -> [G, Q, L]
        if self._query_table is not None:
            scores += (key @ self._query_table.mT).gather(2, index.mT).mT  # [G, L, P] -> [G, L, Q]

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, *, into: tuple[Tensor, Tensor], tile: Tile, scale: float
    ) -> None:
        """Add to the gradients ``into`` of query and key, and to those of the tables, from ``scale * grad``
        ``[G, Q, L]``."""
        grad_query, grad_key = into
        index = self._index[tile.samples, tile.rows]
        key_table_grad, query_table_grad = self._table_grads
        if self._key_table is not None:
            assert key_table_grad is not None
            by_row = _scattered(grad, index, self._key_table)  # [G, Q, P]
            _add_product(grad_query, by_row, self._key_table, scale)
            _add_table(key_table_grad, by_row, query, scale)
        if self._query_table is not None:
            assert query_table_grad is not None
            by_row = _scattered(grad.mT, index.mT, self._query_table)  # [G, L, P]
            _add_product(grad_key, by_row, self._query_table, scale)
            _add_table(query_table_grad, by_row, key, scale)


def windows(total: int) -> Iterator[tuple[int, int]]:
    """(start, size) of windows that cover ``range(total)``."""
    return ((start, min(WINDOW, total - start)) for start in range(0, total, WINDOW))


def _for_each(rows: Tensor, table: Tensor) -> Tensor:
    """A view of ``table`` for every sample. A batched product with it is faster than one product over all samples: at
    64 rows by 575 columns a quarter, because the rows need no copy and each product stays in the first cache."""
    return table.expand(rows.size(0), *table.shape)


def _add_product(total: Tensor, product: Tensor, table: Tensor, scale: float) -> None:
    """Add to ``total`` ``[G, W, H]`` the scaled product of ``[G, W, C]`` and ``[C, H]``."""
    total.baddbmm_(product, _for_each(product, table), alpha=scale)


def _skewed(product: Tensor) -> Tensor:
    """The diagonals of ``[G, W, C]``: element (w, c) of the ``[G, W, C - W + 1]`` view is column ``c - w + W - 1``."""
    samples, size, columns = product.shape
    strides = (size * columns, columns - 1, 1)  # of a dense product; row w starts at column W - 1 - w
    return product.as_strided((samples, size, columns - size + 1), strides, product.storage_offset() + size - 1)


def _scattered(grad: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """``grad`` ``[G, Q, L]`` added up by table row, ``[G, Q, P]``: log buckets put many distances in one row."""
    by_row = grad.new_zeros(*grad.shape[:2], table.size(0))
    return by_row.scatter_add_(2, index, grad)


def _add_table(total: Tensor, product: Tensor, rows: Tensor, scale: float) -> None:
    """Add to ``total`` ``[P, H]`` the gradient of a table from ``product`` ``[G, W, P]`` and ``rows`` ``[G, W, H]``."""
    total.addmm_(product.flatten(0, 1).mT, rows.flatten(0, 1), alpha=scale)
