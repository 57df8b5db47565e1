"""Pipelined = whole: losses, gradient norms, validation and every parameter, with dropout on."""

import functools

import numpy as np
import pytest

from tests.distributed.pipeline_run import RTD, V1, Case, Layout, Outcome, run_case
from tests.ranks import run_ranks

CASES = {
    "v1": Case(V1, {}),
    "v2": Case({"conv_kernel_size": 3}, {}, packed=True),
    "v3": Case({}, {}),
    "rtd": Case({}, RTD),
}
# case, ranks, layout
LAYOUTS = [
    ("v3", 2, Layout(pipeline=2, micro_batch=1)),
    ("v3", 3, Layout(pipeline=3, micro_batch=2, recompute=True)),
    ("v1", 2, Layout(pipeline=2, micro_batch=4)),
    ("v2", 4, Layout(pipeline=2, micro_batch=2)),
    ("rtd", 4, Layout(pipeline=4, micro_batch=2)),
    ("rtd", 4, Layout(pipeline=2, micro_batch=1, recompute=True)),
]


@functools.cache
def _whole(name: str) -> Outcome:
    return run_ranks(run_case, 1, CASES[name], Layout(micro_batch=8))[0]


@pytest.mark.parametrize(("name", "ranks", "layout"), LAYOUTS)
def test_a_pipeline_trains_like_the_whole_model(name: str, ranks: int, layout: Layout) -> None:
    check_equal(run_ranks(run_case, ranks, CASES[name], layout), _whole(name))


def check_equal(outcomes: list[Outcome], whole: Outcome) -> None:
    """fp32 with another order of summation; AdamW amplifies rounding a little over 20 steps."""
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.steps, whole.steps, rtol=1e-5, atol=1e-5)
        assert outcome.validation.keys() == whole.validation.keys()
        for name, (total, count) in whole.validation.items():
            assert outcome.validation[name][1] == count
            assert outcome.validation[name][0] == pytest.approx(total, abs=1e-5 * max(1, count))
        for name, weights in outcome.weights.items():
            np.testing.assert_allclose(weights, whole.weights[name], rtol=0, atol=1e-5, err_msg=name)
    assert {name for outcome in outcomes for name in outcome.weights} == whole.weights.keys()
