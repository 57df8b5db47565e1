"""Tensor parallelism equals the single process: losses, gradient norms and parameters after 20 steps, dropout on."""

import pytest

from tests.distributed.layouts import Layout, assert_equal, run_alone, run_layout

LAYOUTS = [
    Layout("v3", tensor=2, data=2, zero=0, micro_batch=1),
    pytest.param(Layout("v3", tensor=4, zero=1, sequence_parallel=True), marks=pytest.mark.campaign),
    Layout("v3", tensor=2, data=2, zero=2, micro_batch=2, recompute=True),
    Layout("v3", tensor=2, data=2, zero=3, micro_batch=1, sequence_parallel=True),
    Layout("v1", tensor=4, zero=3, micro_batch=4, sequence_parallel=True, recompute=True),
    Layout("v2-conv", tensor=2, data=2, zero=1, micro_batch=1, sequence_parallel=True, recompute=True),
    pytest.param(
        Layout("v2-conv-packed", tensor=4, zero=2, micro_batch=2, sequence_parallel=True), marks=pytest.mark.campaign
    ),
    Layout("rtd-gdes", tensor=2, data=2, zero=2, micro_batch=1, sequence_parallel=True),
    pytest.param(Layout("rtd-es", tensor=2, data=2, zero=1, micro_batch=2), marks=pytest.mark.campaign),
    pytest.param(
        Layout("rtd-nes", tensor=2, zero=2, micro_batch=1, sequence_parallel=True), marks=pytest.mark.campaign
    ),
    pytest.param(Layout("ar", tensor=2, zero=1, micro_batch=2, sequence_parallel=True), marks=pytest.mark.campaign),
    Layout("prefix", tensor=4, zero=2, micro_batch=2, recompute=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_layout_changes_nothing(layout: Layout) -> None:
    assert_equal(run_layout(layout), run_alone(layout.variant))
