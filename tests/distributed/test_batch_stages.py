"""A batch that grows, and one that shrinks, in mid-run: no layout may show, and a resume at any step is exact."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.layouts import Layout, assert_equal, run_layout
from tests.distributed.test_resume_exact import _run
from tests.ranks import run_ranks

STAGES = ((2, 4), (1, 12), (2, 8))
BATCH, STEPS = 16, 8
WHOLE = Layout("v3", micro_batch=4, batch=BATCH, batch_stages=STAGES)
RTD = replace(WHOLE, variant="rtd-gdes")
LAYOUTS = [
    pytest.param(replace(WHOLE, data=2, zero=1, micro_batch=2), marks=pytest.mark.campaign),
    replace(WHOLE, pipeline=2, zero=1, micro_batch=2),
    pytest.param(replace(WHOLE, data=4, zero=2, micro_batch=1), marks=pytest.mark.campaign),
    pytest.param(replace(WHOLE, data=2, zero=3, micro_batch=1), marks=pytest.mark.campaign),
    pytest.param(replace(WHOLE, data=2, micro_batch=2), marks=pytest.mark.campaign),
    pytest.param(replace(WHOLE, tensor=2, data=2, zero=1, micro_batch=1), marks=pytest.mark.campaign),
    pytest.param(replace(RTD, pipeline=2, data=2, zero=1, micro_batch=1), marks=pytest.mark.campaign),
    pytest.param(replace(RTD, data=2, zero=2, micro_batch=1), marks=pytest.mark.campaign),
    pytest.param(
        replace(WHOLE, variant="rtd-gdes-decoupled", data=2, zero=1, micro_batch=1), marks=pytest.mark.campaign
    ),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_equals_one_process_while_the_batch_changes(layout: Layout) -> None:
    assert_equal(run_layout(layout, STEPS), run_layout(replace(WHOLE, variant=layout.variant), STEPS))


@pytest.mark.parametrize("stop", [5, *(pytest.param(stop, marks=pytest.mark.campaign) for stop in (1, 2, 3, 4, 6))])
def test_a_resume_around_a_change_equals_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop: int) -> None:
    """After the last change the engine that resumes has had no other batch, and no switch of DeepSpeed's."""
    layout = replace(WHOLE, data=2, zero=1, micro_batch=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    _, expected, weights = run_ranks(_run, 2, whole, layout, [STEPS])[0]
    _, before, _ = run_ranks(_run, 2, parts, layout, [stop])[0]
    first, after, resumed = run_ranks(_run, 2, parts, layout, [STEPS])[0]
    assert first == stop
    assert (before + after, resumed) == (expected, weights)
