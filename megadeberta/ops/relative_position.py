"""Signed distances -> rows of the relative table.

Shapes: L length · Q query rows · B batch.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def bucket_relative_position(distance: int, num_buckets: int, max_distance: int) -> int:
    """Map one signed distance (query minus key) to its log-spaced bucket.

    Distances up to ``num_buckets // 2`` keep their own bucket; farther ones share buckets that grow logarithmically,
    so that ``max_distance - 1`` lands in the last one. Odd: ``f(-d) == -f(d)``. Distances beyond ``max_distance - 1``
    are clipped first, as in microsoft/DeBERTa ``disentangled_attention.py``; transformers does not clip and then reads
    the untrained row 0 of the table.
    """
    middle = num_buckets // 2
    clipped = max(1 - max_distance, min(max_distance - 1, distance))
    magnitude = abs(clipped)
    if magnitude <= middle:
        return clipped
    scaled = (middle - 1) * math.log(magnitude / middle) / math.log((max_distance - 1) / middle)
    # Without the small offset float64 noise at max_distance - 1 would round up into a bucket that does not exist.
    bucket = middle + math.ceil(scaled - 1e-9)
    return bucket if clipped > 0 else -bucket


def table_row(distance: int, *, num_buckets: int, max_distance: int) -> int:
    """Row of the relative table for one distance: ``clip(bucket + k, 0, 2k - 1)`` (paper eq. 3).

    ``num_buckets < 1`` means linear distances with ``k = max_distance``.
    """
    if num_buckets < 1:
        return max(0, min(2 * max_distance - 1, distance + max_distance))
    bucket = bucket_relative_position(distance, num_buckets, max_distance)
    return max(0, min(2 * num_buckets - 1, bucket + num_buckets))


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
        rows: ``[2L - 1]`` from :func:`rows_by_distance`, of keys at positions ``0 .. L-1``.
        query_positions: ``[B, Q]``; None means the positions ``0 .. num_queries - 1``, and all of them without that.

    Returns:
        ``[Q, L]``, or ``[B, Q, L]`` when query positions are given.
    """
    length = (rows.numel() + 1) // 2
    keys = torch.arange(length, device=rows.device)
    queries = keys[:num_queries] if query_positions is None else query_positions
    return rows[queries.unsqueeze(-1) - keys + (length - 1)]
