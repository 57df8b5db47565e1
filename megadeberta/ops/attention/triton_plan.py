"""Tile sizes of the Triton kernels, and what they imply: programs, on-chip bytes, traffic and operations.

Plain arithmetic without Triton, so that a design can be checked where there is no GPU.

Shapes: BM queries · BN keys · WD = BM + BN distances of a window · D head size, padded to a power of two.
"""

from dataclasses import dataclass
from typing import Any

BLOCK = 64
"""Queries and keys of a tile. Equal, because the table gradient walks along diagonals of tiles."""

PROGRAMS_WANTED = 4 * 132
"""Programs of the table kernel: four for each multiprocessor of an H200."""


@dataclass(frozen=True)
class TilePlan:
    """One choice of tiles."""

    rows: int  # BM
    columns: int  # BN
    padded_head: int  # D
    warps: int

    @property
    def window(self) -> int:
        """WD: the distances of a tile, one more than needed to be a power of two."""
        return self.rows + self.columns

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a kernel launch."""
        return {"BM": self.rows, "BN": self.columns, "D": self.padded_head, "num_warps": self.warps}

    def windows(self, num_queries: int, num_keys: int, *, separate_rows: bool) -> tuple[int, int]:
        """First window of distances of the table kernel, and their number."""
        if separate_rows:
            lowest, highest = -(num_keys - 1), num_keys - 1
            first = lowest // self.window
            return first, highest // self.window - first + 1
        query_tiles, key_tiles = -(-num_queries // self.rows), -(-num_keys // self.columns)
        return -(key_tiles - 1), query_tiles + key_tiles - 1

    def shares(self, batch: int, heads: int, num_windows: int) -> tuple[int, int]:
        """Parts of the batch that the table kernel sums apart, and the samples of each."""
        wanted = max(1, min(batch, PROGRAMS_WANTED // (heads * num_windows)))
        samples_each = -(-batch // wanted)
        return -(-batch // samples_each), samples_each

    def table_scratch_bytes(self, *, batch: int, heads: int, num_queries: int, num_keys: int, head_size: int) -> int:
        """fp32 partial sums of both table gradients by distance: the only scratch besides log-sum-exp and delta."""
        _, count = self.windows(num_queries, num_keys, separate_rows=False)
        shares, _ = self.shares(batch, heads, count)
        return 2 * 4 * shares * heads * count * self.window * head_size

    def row_scratch_bytes(self, *, batch: int, heads: int, num_queries: int) -> int:
        """fp32 log-sum-exp and delta, two numbers a query and head."""
        return 2 * 4 * batch * heads * num_queries

    def score_flops(self) -> int:
        """Operations of one tile of scores: content, and two products with a window of the table."""
        content = 2 * self.rows * self.columns * self.padded_head
        return content + 2 * (self.rows + self.columns) * self.window * self.padded_head

    def forward_flops(self) -> int:
        return self.score_flops() + 2 * self.rows * self.columns * self.padded_head

    def backward_flops(self) -> int:
        """All three kernels: each computes scores and the gradient of the weights again."""
        content = 2 * self.rows * self.columns * self.padded_head
        spread = 2 * self.rows * self.window * self.padded_head  # one product of a gradient laid out by distance
        query, key, table = content + spread, 2 * content + spread, 2 * spread
        return 3 * (self.score_flops() + content) + query + key + table

    def forward_bytes(self, *, num_queries: int, num_keys: int, head_size: int, element: int = 2) -> int:
        """Global reads and writes of one head of one sample; keys, values and tables are read once a query tile."""
        query_tiles, key_tiles = -(-num_queries // self.rows), -(-num_keys // self.columns)
        read_a_tile = 2 * self.columns * head_size + 2 * self.window * head_size
        own = 2 * num_queries * head_size
        return element * (query_tiles * key_tiles * read_a_tile + own) + 4 * num_queries

    def forward_shared_bytes(self, element: int = 2) -> int:
        """On-chip memory of a program that Triton stages through shared memory: operands of the products of one tile
        and the larger of the two products that are read with a shift."""
        operands = element * self.padded_head * (self.rows + 2 * self.columns + 2 * self.window)
        return operands + 4 * self.window * max(self.rows, self.columns)


def plan_tiles(head_size: int) -> TilePlan:
    """The tiles for this head size."""
    padded = max(16, 1 << (head_size - 1).bit_length())
    return TilePlan(BLOCK, BLOCK, padded, warps=4 if padded <= 64 else 8)
