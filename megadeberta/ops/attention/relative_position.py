"""Signed distances -> rows of the relative table.

Shapes: L length · Q query rows · B batch.
"""

from functools import lru_cache

import torch
from torch import Tensor

from megadeberta.ops.attention.distance_rows import table_row


@lru_cache(maxsize=32)
def rows_by_distance(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Rows for the distances ``-(L-1) .. L-1``: int64 ``[2L - 1]`` on the CPU, non-decreasing.

    Computed with integers from float64 on the CPU once, so that no device can round a bucket differently.
    """
    return torch.tensor(
        [table_row(d, num_buckets=num_buckets, max_distance=max_distance) for d in range(1 - length, length)]
    )


def relative_index(rows: Tensor, *, query_positions: Tensor | None = None, num_queries: int | None = None) -> Tensor:
    """Table row for every (query, key) pair.

    Args:
        rows: ``[2L - 1]`` integers from :func:`rows_by_distance`, of keys at positions ``0 .. L-1``.
        query_positions: ``[B, Q]``; None means the positions ``0 .. num_queries - 1``, and all of them without that.

    Returns:
        ``[Q, L]``, or ``[B, Q, L]`` when query positions are given.
    """
    length = (rows.numel() + 1) // 2
    keys = torch.arange(length, device=rows.device)
    queries = keys[:num_queries] if query_positions is None else query_positions
    return rows[queries.unsqueeze(-1) - keys + (length - 1)].long()  # as gather wants it
