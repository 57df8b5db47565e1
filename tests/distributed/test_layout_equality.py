"""Ranks x accumulation x micro batch = one big batch, and every ZeRO stage = the plain optimizer."""

import functools

import pytest

from tests.distributed.toy_run import run_toy, toy_block
from tests.ranks import run_ranks

STEPS = 20
LAYOUTS = [
    (ranks, stage, micro) for ranks, stages in ((1, (0, 1)), (2, (1, 2, 3))) for stage in stages for micro in (1, 2, 4)
]


@functools.cache
def _reference() -> list[tuple[float, float]]:
    return run_ranks(run_toy, 1, toy_block(zero_stage=0, micro_batch=8), STEPS)[0]


@pytest.mark.parametrize(("ranks", "stage", "micro"), LAYOUTS)
def test_losses_do_not_depend_on_the_layout(ranks: int, stage: int, micro: int) -> None:
    traces = run_ranks(run_toy, ranks, toy_block(zero_stage=stage, micro_batch=micro), STEPS)
    for trace in traces:
        # fp32 with another order of summation; AdamW amplifies rounding a little over 20 steps.
        for found, expected in zip(trace, _reference(), strict=True):
            assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_the_toy_run_learns() -> None:
    losses = [loss for loss, _ in _reference()[:-1]]
    assert losses[0] - losses[-1] > 0.1
