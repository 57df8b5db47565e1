"""Distances, their log buckets, and the rows of the relative table."""

import math

import pytest
import torch

from megadeberta.ops.attention.distance_rows import bucket_relative_position, table_row, window_size
from megadeberta.ops.attention.relative_position import relative_index, rows_by_distance

# (distance, bucket, row) for 256 buckets and distances up to 511, from running both published implementations.
PUBLISHED = [
    (0, 0, 256),
    (1, 1, 257),
    (-1, -1, 255),
    (64, 64, 320),
    (127, 127, 383),
    (128, 128, 384),
    (129, 129, 385),
    (130, 130, 386),
    (131, 131, 387),
    (132, 131, 387),
    (133, 132, 388),
    (134, 133, 389),
    (140, 137, 393),
    (-140, -137, 119),
    (150, 143, 399),
    (-150, -143, 113),
    (200, 169, 425),
    (-200, -169, 87),
    (255, 192, 448),
    (256, 192, 448),
    (-256, -192, 64),
    (300, 207, 463),
    (400, 233, 489),
    (450, 244, 500),
    (500, 254, 510),
    (510, 255, 511),
    (511, 255, 511),
    (-511, -255, 1),
    (512, 255, 511),
    (-512, -255, 1),
    (-600, -255, 1),
]
FIRST_DISTANCE_OF_BUCKET = {
    136: 139,
    144: 151,
    152: 165,
    160: 180,
    168: 196,
    176: 214,
    184: 234,
    192: 255,
    200: 278,
    208: 303,
    216: 331,
    224: 361,
    232: 394,
    240: 430,
    248: 469,
}
SIZES = [
    (256, 512),
    (4, 8),
    (32, 128),
    (128, 512),
    (64, 512),
    (256, 1024),
    (512, 2048),
    (8, 16),
    (5, 9),
    (3, 8),
    (6, 7),
]


@pytest.mark.parametrize(("distance", "bucket", "row"), PUBLISHED)
def test_buckets_and_rows_are_those_of_the_published_models(distance: int, bucket: int, row: int) -> None:
    assert bucket_relative_position(distance, 256, 512) == bucket
    assert table_row(distance, num_buckets=256, max_distance=512) == row


def test_each_bucket_starts_at_the_published_distance() -> None:
    found = {}
    for distance in range(512):
        found.setdefault(bucket_relative_position(distance, 256, 512), distance)
    assert {bucket: found[bucket] for bucket in FIRST_DISTANCE_OF_BUCKET} == FIRST_DISTANCE_OF_BUCKET
    assert sorted(found) == list(range(256)), "every bucket is in use"


@pytest.mark.parametrize(
    ("max_distance", "expected"),
    [
        (512, [143, 169, 192, 207, 233, 255]),
        (1024, [138, 156, 171, 181, 198, 213]),
        (2048, [136, 149, 160, 168, 181, 192]),
    ],
)
def test_a_longer_span_moves_every_bucket_beyond_the_middle(max_distance: int, expected: list[int]) -> None:
    distances = (150, 200, 256, 300, 400, 511)
    assert [bucket_relative_position(distance, 256, max_distance) for distance in distances] == expected


def test_four_buckets_over_eight_positions_are_the_known_ones() -> None:
    buckets = [bucket_relative_position(distance, 4, 8) for distance in range(-12, 13)]
    assert buckets == [-3] * 10 + [-2, -1, 0, 1, 2] + [3] * 10
    assert [table_row(distance, num_buckets=4, max_distance=8) for distance in range(-12, 13)] == [
        bucket + 4 for bucket in buckets
    ]
    assert relative_index(rows_by_distance(3, 4, 8)).tolist() == [[4, 3, 2], [5, 4, 3], [6, 5, 4]]


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
def test_buckets_are_odd_grow_and_hit_both_ends(num_buckets: int, max_distance: int) -> None:
    middle = num_buckets // 2
    values = [bucket_relative_position(distance, num_buckets, max_distance) for distance in range(max_distance)]
    assert values == sorted(values)
    assert values[: middle + 1] == list(range(middle + 1))
    assert values[-1] == 2 * middle - 1
    negative = [bucket_relative_position(-distance, num_buckets, max_distance) for distance in range(max_distance)]
    assert negative == [-value for value in values]


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
def test_buckets_equal_the_formula_in_exact_powers(num_buckets: int, max_distance: int) -> None:
    """Beyond the middle m, bucket m + k has the least k with (r / m) ** (m - 1) <= ((M - 1) / m) ** k: no logarithm."""
    m = num_buckets // 2
    for distance in range(m + 1, max_distance):
        bucket = bucket_relative_position(distance, num_buckets, max_distance)
        k = bucket - m
        # (r/m)^(m-1) <= ((M-1)/m)^k, in integers: r^(m-1) * m^k <= (M-1)^k * m^(m-1)
        assert distance ** (m - 1) * m**k <= (max_distance - 1) ** k * m ** (m - 1)
        if k > 0:
            assert distance ** (m - 1) * m ** (k - 1) > (max_distance - 1) ** (k - 1) * m ** (m - 1)


@pytest.mark.parametrize("num_buckets", [256, 64, 8])
def test_row_zero_of_a_bucketed_table_is_never_read(num_buckets: int) -> None:
    rows = rows_by_distance(512, num_buckets, 512)
    assert rows.min().item() == 1 and rows.max().item() == 2 * num_buckets - 1
    assert rows_by_distance(2000, num_buckets, 512).min().item() == 1, "longer sequences are clipped first"


def test_linear_distances_use_both_ends_of_the_table() -> None:
    rows = rows_by_distance(12, -1, 8)
    assert rows.tolist() == [max(0, min(15, distance + 8)) for distance in range(-11, 12)]


@pytest.mark.parametrize("num_buckets", [6, -1])
def test_rows_do_not_decrease_with_distance(num_buckets: int) -> None:
    assert rows_by_distance(40, num_buckets, 16).diff().min().item() >= 0


def test_the_index_of_some_rows_is_those_rows_of_the_whole_index() -> None:
    rows = rows_by_distance(9, 4, 8)
    positions = torch.tensor([[0, 8, 3], [5, 5, 0]])
    some = relative_index(rows, query_positions=positions)
    assert some.shape == (2, 3, 9)
    assert torch.equal(some, relative_index(rows)[positions])


def test_the_offset_before_rounding_changes_no_bucket() -> None:
    """Without 1e-9 the float64 formula gives the same everywhere except, by noise, where the logarithm is whole."""
    for num_buckets, max_distance in SIZES:
        m = num_buckets // 2
        for distance in range(m + 1, max_distance):
            exact = (m - 1) * math.log(distance / m) / math.log((max_distance - 1) / m)
            if abs(exact - round(exact)) > 1e-6:
                assert bucket_relative_position(distance, num_buckets, max_distance) == m + math.ceil(exact)


@pytest.mark.parametrize(("buckets", "max_distance"), [(4, 8), (256, 512), (-1, 12)])
@pytest.mark.parametrize("length", [1, 3, 24, 600])
def test_the_window_of_the_table_holds_the_rows_that_a_sequence_reads(
    length: int, buckets: int, max_distance: int
) -> None:
    rows = rows_by_distance(length, buckets, max_distance)
    assert window_size(length, num_buckets=buckets, max_distance=max_distance) == int(rows[-1] - rows[0]) + 1
