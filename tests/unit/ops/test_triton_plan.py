"""What the tile sizes imply, for the shapes whose speed and memory matter."""

import pytest

from megadeberta.ops.attention.triton_plan import plan_tiles

MIB = 2**20
SHARED_BYTES_H200 = 227 * 1024


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
def test_a_program_fits_the_shared_memory_of_an_h200(head_size: int) -> None:
    assert plan_tiles(head_size).forward_shared_bytes() <= SHARED_BYTES_H200


@pytest.mark.parametrize(("batch", "length"), [(64, 256), (32, 512), (8, 2048), (2, 8192)])
def test_scratch_for_16k_tokens_stays_far_below_the_goal(batch: int, length: int) -> None:
    plan = plan_tiles(64)
    table = plan.table_scratch_bytes(batch=batch, heads=12, num_queries=length, num_keys=length, head_size=64)
    rows = plan.row_scratch_bytes(batch=batch, heads=12, num_queries=length)
    # Scores [B, N, L, L] in bf16 would take 0.19 GiB at 512 tokens and 3 GiB at 8192.
    assert table + rows <= 0.2 * 2**30
    assert rows == 2 * 4 * 16384 * 12


def test_the_windows_of_the_table_kernel_are_the_diagonals_of_tiles() -> None:
    plan = plan_tiles(64)
    first, count = plan.windows(512, 512, separate_rows=False)
    tiles = 512 // plan.rows
    assert (first, count) == (-(tiles - 1), 2 * tiles - 1)
    assert (first + count - 1) * plan.rows + plan.rows - 1 >= 511


@pytest.mark.parametrize("length", [1, 63, 200])
def test_windows_of_separate_rows_cover_every_distance(length: int) -> None:
    plan = plan_tiles(64)
    first, count = plan.windows(5, length, separate_rows=True)
    assert first * plan.window <= 1 - length and (first + count) * plan.window > length - 1


def test_all_samples_are_in_a_share() -> None:
    plan = plan_tiles(64)
    for batch in (1, 3, 64):
        shares, each = plan.shares(batch, 12, 15)
        assert (shares - 1) * each < batch <= shares * each


def test_position_products_cost_four_times_the_content_product() -> None:
    plan = plan_tiles(64)
    content = 2 * plan.rows * plan.columns * 64
    assert plan.score_flops() == 5 * content
    assert plan.forward_flops() == 6 * content


def test_traffic_of_a_head_is_far_below_its_score_matrix() -> None:
    plan = plan_tiles(64)
    traffic = plan.forward_bytes(num_queries=512, num_keys=512, head_size=64)
    two_gathers_a_score = 2 * 2 * 512 * 512 + 2 * 512 * 512 * 2
    assert traffic < 2 * two_gathers_a_score
    assert plan.forward_bytes(num_queries=1024, num_keys=1024, head_size=64) < 4.1 * traffic
