"""Ranks x accumulation x micro batch = one big batch, and every ZeRO stage = the plain optimizer."""

import pytest

from tests.distributed.layouts import Layout, assert_equal, build, micro_batches, run_alone, run_layout
from tests.ranks import run_ranks

BATCH = 8
LAYOUTS = [
    Layout("v3", data=ranks, zero=stage, micro_batch=micro_batch, batch=BATCH)
    for ranks, stages in ((1, (0, 1)), (2, (1, 2, 3)))
    for stage in stages
    for micro_batch in (1, 2, 4)
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_does_not_depend_on_the_layout(layout: Layout) -> None:
    assert_equal(run_layout(layout), run_alone("v3", BATCH))


def _train_on_one_batch(rank: int, world_size: int, layout: Layout) -> list[float]:
    stepper, batches = build(layout).stepper, micro_batches(layout, 0, rank)
    targets, _ = stepper.share_counts(batches)
    return [stepper.train_step(batches, step=step, targets=targets, lr=layout.lr).loss for step in range(20)]


def test_a_batch_that_comes_again_is_learnt() -> None:
    """The tokens of these runs are random: that all layouts agree would be true of a run that learns nothing."""
    (losses,) = run_ranks(_train_on_one_batch, 1, Layout("v3", micro_batch=BATCH, batch=BATCH))
    assert losses[0] - losses[-1] > 0.5
