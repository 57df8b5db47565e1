"""How the table kernel divides its work, for the shapes whose speed and memory matter."""

import pytest

from megadeberta.ops.attention.triton_plan import KernelPlan

PLAN = KernelPlan(64, 64, warps=4, stages=1)


@pytest.mark.parametrize(("batch", "length"), [(64, 256), (32, 512), (8, 2048), (2, 8192)])
def test_scratch_for_16k_tokens_stays_below_the_goal(batch: int, length: int) -> None:
    windows = PLAN.windows(length, length)
    shares, _ = PLAN.shares(batch, 12, windows)
    tables = 2 * 4 * shares * 12 * windows * PLAN.window * 64  # fp32 sums of both table gradients by distance
    rows = 2 * 4 * batch * 12 * length  # fp32 log-sum-exp and delta
    # Scores [B, N, L, L] in bf16 would take 0.19 GiB at 512 tokens and 3 GiB at 8192.
    assert tables + rows <= 0.2 * 2**30


@pytest.mark.parametrize(("rows", "keys"), [(512, 512), (500, 512), (64, 512), (512, 70)])
def test_every_tile_is_on_a_diagonal_that_has_a_window(rows: int, keys: int) -> None:
    numbers = range(PLAN.windows(rows, keys))
    diagonals = [(number + 1) // 2 if number % 2 else -(number // 2) for number in numbers]  # as in table_kernel
    tiles = {i - j for i in range(-(-rows // 64)) for j in range(-(-keys // 64))}
    assert tiles <= set(diagonals)
    assert [abs(diagonal) for diagonal in diagonals] == sorted(abs(diagonal) for diagonal in diagonals)


def test_all_samples_are_in_a_share() -> None:
    for batch in (1, 3, 64):
        shares, each = PLAN.shares(batch, 12, 15)
        assert (shares - 1) * each < batch <= shares * each
