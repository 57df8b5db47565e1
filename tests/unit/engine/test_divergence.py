"""When a run is called diverged, and what it says."""

import math

import pytest

from megadeberta.engine.divergence import MAX_SKIPPED_IN_A_ROW, DivergenceGuard
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import Update


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_its_part(value: float) -> None:
    sums, guard = {"mlm_loss": 2.0, "rtd_loss": value}, DivergenceGuard("bf16")
    guard.check_loss(sums, Update("generator", {"mlm_loss": 1.0}), step=7)
    message = rf"^step 8: the loss \(rtd_loss\) is {value}; no weight of the discriminator was changed at this step\. "
    with pytest.raises(DivergenceError, match=message):
        guard.check_loss(sums, Update("discriminator", {"rtd_loss": 50.0}), step=7)
    with pytest.raises(DivergenceError, match=r"no weight was changed at this step\. Lower optimizer\.lr, lengthen"):
        guard.check_loss(sums, Update(None, {"mlm_loss": 1.0, "rtd_loss": 50.0}), step=7)


def test_a_metric_that_is_not_finite_stops_nothing() -> None:
    sums = {"mlm_loss": 2.0, "mlm_accuracy": math.nan}
    DivergenceGuard("fp32").check_loss(sums, Update(None, {"mlm_loss": 1.0}), step=0)


def test_a_gradient_norm_that_is_not_finite_is_told_with_what_to_do() -> None:
    guard = DivergenceGuard("fp32")
    guard.check_gradient(3.5, step=2)
    with pytest.raises(DivergenceError, match=r"^step 3: the gradient norm is inf while the loss is finite; no weight"):
        guard.check_gradient(math.inf, step=2)
    DivergenceGuard("fp16").check_gradient(math.inf, step=2)  # an overflow, which the optimizer counts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_that_is_refused_without_fp16_had_a_gradient_that_was_not_finite(precision: str) -> None:
    guard = DivergenceGuard(precision)
    guard.check_applied(True, step=0)
    with pytest.raises(DivergenceError, match=r"^step 2: the gradient norm is nan while the loss is finite"):
        guard.check_applied(False, step=1)


def test_fp16_may_skip_steps_but_not_too_many_in_a_row() -> None:
    guard = DivergenceGuard("fp16")
    for step in range(MAX_SKIPPED_IN_A_ROW):
        guard.check_applied(False, step=step)
    guard.check_applied(True, step=8)  # the loss scale has come down far enough: counted anew
    for step in range(9, 9 + MAX_SKIPPED_IN_A_ROW):
        guard.check_applied(False, step=step)
    with pytest.raises(DivergenceError, match=r"^step 18: 9 fp16 steps in a row overflowed; use bf16, or lower optimi"):
        guard.check_applied(False, step=17)
