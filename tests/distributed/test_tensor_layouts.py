"""Tensor parallelism equals the single process: losses, gradient norms and parameters after 20 steps, dropout on."""

import functools

import pytest

from tests.distributed.layouts import Layout, Trace, run_layout

CLOSE = 1e-5
"""fp32 with another order of summation, amplified a little by AdamW over 20 steps."""


@functools.cache
def _reference(variant: str) -> Trace:
    return run_layout(Layout(variant))


def assert_equal(found: Trace, expected: Trace) -> None:
    """Every step, the validation loss and every parameter."""
    assert found.losses == pytest.approx(expected.losses, abs=CLOSE, rel=CLOSE)
    assert found.norms == pytest.approx(expected.norms, abs=CLOSE, rel=CLOSE)
    assert found.held_out == pytest.approx(expected.held_out, abs=CLOSE)
    assert found.parameters.keys() == expected.parameters.keys()
    apart = {name: float((found.parameters[name] - p).abs().max()) for name, p in expected.parameters.items()}
    assert max(apart.values()) < CLOSE, sorted(apart.items(), key=lambda item: -item[1])[:5]


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
    assert_equal(run_layout(layout), _reference(layout.variant))
