"""When a run is called diverged: a loss or a gradient that is not finite, or too many fp16 steps that overflow."""

import math
from collections.abc import Mapping

from megadeberta.config.deepspeed_block import Precision
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import Update

MAX_SKIPPED_IN_A_ROW = 8
"""fp16 steps that may overflow one after the other before the run is called diverged."""


class DivergenceGuard:
    """The checks of one run, on numbers that are the same on every rank. ``step`` counts from 0."""

    def __init__(self, precision: Precision) -> None:
        self._may_overflow = precision == "fp16"
        self._skipped_in_a_row = 0

    def check_loss(self, sums: Mapping[str, float], update: Update, *, step: int) -> None:
        """Of an update that changes nothing where a loss is not finite.

        Raises:
            DivergenceError: the sum of a loss term is not finite.
        """
        for name in update.weights:
            loss_sum = sums[name]
            if not math.isfinite(loss_sum):
                where = f" of the {update.part}" if update.part else ""
                raise DivergenceError(
                    f"step {step + 1}: the loss ({name}) is {loss_sum}; no weight{where} was changed at this step. "
                    "Lower optimizer.lr, lengthen the warm-up or use bf16, and start again: the run resumes from its "
                    "last checkpoint"
                )

    def check_gradient(self, norm: float, *, step: int) -> None:
        """Of an update that changes nothing where its gradient is not finite.

        Raises:
            DivergenceError: its norm is not finite, and that is no overflow of fp16.
        """
        if not math.isfinite(norm) and not self._may_overflow:
            raise DivergenceError(_bad_gradient(step, norm))

    def check_applied(self, applied: bool, *, step: int) -> None:
        """After an update that the optimizer may have refused.

        Raises:
            DivergenceError: it did, and that is no overflow of fp16, or one too many.
        """
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if applied:
            return
        if not self._may_overflow:
            raise DivergenceError(_bad_gradient(step, math.nan))
        if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"step {step + 1}: {self._skipped_in_a_row} fp16 steps in a row overflowed; use bf16, or lower "
                "optimizer.lr; the run resumes from its last checkpoint"
            )


def _bad_gradient(step: int, norm: float) -> str:
    return (
        f"step {step + 1}: the gradient norm is {norm} while the loss is finite; no weight was changed at this step. "
        "Lower optimizer.lr or lengthen the warm-up, and start again: the run resumes from its last checkpoint"
    )
