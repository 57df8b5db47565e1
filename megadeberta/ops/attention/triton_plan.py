"""Tile sizes of the Triton kernels, and how the table kernel divides its work into programs.

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
        """First window of distances of the table kernel, and their number.

        Window w of consecutive rows is diagonal w of tiles: the tiles whose query tile minus key tile is w. It holds
        the distances ``w BM - BN + 1 .. w BM + BM``, so neighbours overlap and each tile has one window. Rows with
        positions of their own meet many distances in a tile: there window w is ``w WD .. w WD + WD - 1``.
        """
        if separate_rows:
            lowest, highest = -(num_keys - 1), num_keys - 1
            first = lowest // self.window
            return first, highest // self.window - first + 1
        query_tiles, key_tiles = -(-num_queries // self.rows), -(-num_keys // self.columns)
        return -(key_tiles - 1), query_tiles + key_tiles - 1

    def shares(self, batch: int, heads: int, num_windows: int) -> tuple[int, int]:
        """Parts of the batch that the table kernel sums apart, and the samples of each.

        A program for every sample would need scratch of that many tables; one for all would leave multiprocessors idle.
        """
        wanted = max(1, min(batch, PROGRAMS_WANTED // (heads * num_windows)))
        samples_each = -(-batch // wanted)
        return -(-batch // samples_each), samples_each


def plan_tiles(head_size: int) -> TilePlan:
    """The tiles for this head size."""
    padded = max(16, 1 << (head_size - 1).bit_length())
    return TilePlan(BLOCK, BLOCK, padded, warps=4 if padded <= 64 else 8)
