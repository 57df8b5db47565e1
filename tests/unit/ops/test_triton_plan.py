"""How the table kernel divides its work, for the shapes whose speed and memory matter."""

import pytest

from megadeberta.ops.attention.triton_plan import plan_tiles


@pytest.mark.parametrize(("batch", "length"), [(64, 256), (32, 512), (8, 2048), (2, 8192)])
def test_scratch_for_16k_tokens_stays_far_below_the_goal(batch: int, length: int) -> None:
    plan = plan_tiles(64)
    _, count = plan.windows(length, length, separate_rows=False)
    shares, _ = plan.shares(batch, 12, count)
    tables = 2 * 4 * shares * 12 * count * plan.window * 64  # fp32 sums of both table gradients by distance
    rows = 2 * 4 * batch * 12 * length  # fp32 log-sum-exp and delta
    # Scores [B, N, L, L] in bf16 would take 0.19 GiB at 512 tokens and 3 GiB at 8192.
    assert tables + rows <= 0.2 * 2**30


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
