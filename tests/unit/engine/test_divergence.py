"""When a step is refused, when a run is called diverged, and what it says."""

import math

import pytest

from megadeberta.engine.divergence import MAX_SKIPPED_IN_A_ROW, DivergenceGuard
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import Update

WHOLE = Update(None, {"mlm_loss": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_part(value: float) -> None:
    sums, guard = {"mlm_loss": 2.0, "rtd_loss": value}, DivergenceGuard("bf16")
    assert guard.find_problem(Update("generator", {"mlm_loss": 1.0}), sums) == ""
    said = f"the loss (rtd_loss) is {value}; no weight of the discriminator was changed at this step"
    assert guard.find_problem(Update("discriminator", {"rtd_loss": 50.0}), sums) == said
    both = guard.find_problem(Update(None, {"mlm_loss": 1.0, "rtd_loss": 50.0}), sums)
    assert both.endswith("no weight was changed at this step")


def test_a_metric_that_is_not_finite_stops_nothing() -> None:
    assert DivergenceGuard("fp32").find_problem(WHOLE, {"mlm_loss": 2.0, "mlm_accuracy": math.nan}) == ""


def test_a_gradient_norm_that_is_not_finite_is_no_overflow_but_in_fp16() -> None:
    sums = {"mlm_loss": 2.0}
    found = [DivergenceGuard("fp32").find_problem(WHOLE, sums, norm=norm) for norm in (3.5, math.inf)]
    said = "the gradient norm is inf while the loss is finite; no weight was changed at this step"
    assert found == ["", said]
    assert DivergenceGuard("fp16").find_problem(WHOLE, sums, norm=math.inf, applied=False) == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_that_is_refused_without_fp16_had_a_gradient_that_was_not_finite(precision: str) -> None:
    guard, sums = DivergenceGuard(precision), {"mlm_loss": 2.0}
    assert guard.find_problem(WHOLE, sums, applied=True) == ""
    assert guard.find_problem(WHOLE, sums, applied=False).startswith("the gradient norm is nan while the loss")


def test_the_first_step_that_is_refused_ends_the_run_and_says_what_to_do() -> None:
    guard = DivergenceGuard("bf16")
    guard.judge("", applied=True, step=6)
    said = r"^step 8: the loss is nan\. Lower optimizer\.lr or lengthen the warm-up, and start again: the run resumes"
    with pytest.raises(DivergenceError, match=said):
        guard.judge("the loss is nan", applied=True, step=7)
    with pytest.raises(
        DivergenceError, match=r"the loss is nan\. Lower optimizer\.lr, lengthen the warm-up or use bf16"
    ):
        DivergenceGuard("fp16").judge("the loss is nan", applied=False, step=7)


def test_as_many_steps_in_a_row_as_asked_are_passed_over_and_one_that_is_applied_starts_the_count_again() -> None:
    guard = DivergenceGuard("fp32", skip_limit=2)
    for step, problem in enumerate(["bad", "bad", "", "bad", "bad"]):
        guard.judge(problem, applied=not problem, step=step)
    with pytest.raises(DivergenceError, match=r"^step 6: bad, as 2 before it were\. Lower"):
        guard.judge("bad", applied=False, step=5)


def test_fp16_may_skip_steps_but_not_too_many_in_a_row() -> None:
    guard = DivergenceGuard("fp16")
    for step in range(MAX_SKIPPED_IN_A_ROW):
        guard.judge("", applied=False, step=step)
    guard.judge("", applied=True, step=8)  # the loss scale has come down far enough: counted anew
    for step in range(9, 9 + MAX_SKIPPED_IN_A_ROW):
        guard.judge("", applied=False, step=step)
    with pytest.raises(DivergenceError, match=r"^step 18: 9 fp16 steps in a row overflowed; use bf16, or lower optimi"):
        guard.judge("", applied=False, step=17)
