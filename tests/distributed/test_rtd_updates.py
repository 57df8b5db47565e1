"""Replaced token detection through the engine: layouts agree, and two updates equal one where nothing is shared."""

import functools

import pytest

from tests.distributed.toy_run import run_toy, toy_block
from tests.ranks import run_ranks

STEPS = 20
RTD = {"name": "rtd", "rtd": {"loss_weight": 10.0, "generator_layers": 2}}


def _rtd(**changes: object) -> dict[str, object]:
    return RTD | {"rtd": RTD["rtd"] | changes}


@functools.cache
def _reference(sharing: str, decoupled: bool) -> list[tuple[float, float]]:
    block = toy_block(zero_stage=0, micro_batch=8)
    return run_ranks(run_toy, 1, block, STEPS, _rtd(embedding_sharing=sharing, decoupled=decoupled))[0]


@pytest.mark.parametrize(
    ("sharing", "decoupled", "ranks", "stage", "micro"),
    [
        ("gdes", False, 2, 2, 2),
        ("gdes", False, 2, 3, 2),
        ("gdes", False, 1, 1, 4),
        ("es", False, 2, 2, 2),
        ("gdes", True, 2, 2, 2),
        ("gdes", True, 2, 1, 2),
        ("nes", True, 1, 0, 4),
    ],
)
def test_rtd_losses_do_not_depend_on_the_layout(
    sharing: str, decoupled: bool, ranks: int, stage: int, micro: int
) -> None:
    objective = _rtd(embedding_sharing=sharing, decoupled=decoupled)
    traces = run_ranks(run_toy, ranks, toy_block(zero_stage=stage, micro_batch=micro), STEPS, objective)
    for trace in traces:
        # fp32 with another order of summation; AdamW amplifies rounding a little over 20 steps.
        for found, expected in zip(trace, _reference(sharing, decoupled), strict=True):
            assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
