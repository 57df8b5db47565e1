"""Signed distance -> row of the relative table, one at a time and without torch."""

import math


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


def window_size(length: int, *, num_buckets: int, max_distance: int) -> int:
    """Rows of the table that a sequence of ``length`` tokens can read: they are contiguous."""
    first, last = (table_row(d, num_buckets=num_buckets, max_distance=max_distance) for d in (1 - length, length - 1))
    return last - first + 1


def nearest_read_rows(*, num_buckets: int, max_distance: int) -> list[int]:
    """For every row of the table the nearest one that some distance reads, the lower of two; most rows give themselves.

    Row 0 of buckets is read by none. Neither is the last row where ``num_buckets`` is odd, nor rows in between where
    there are more buckets than distances.
    """
    if num_buckets < 1:
        return list(range(2 * max_distance))
    distances = range(1 - max_distance, max_distance)
    read = sorted({table_row(d, num_buckets=num_buckets, max_distance=max_distance) for d in distances})
    return [min(read, key=lambda other: (abs(other - row), other)) for row in range(2 * num_buckets)]
