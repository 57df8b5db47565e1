"""When a step is refused, and when a run is called diverged: what is not finite, and how often in a row."""

import math
from collections.abc import Callable, Mapping

from megadeberta.config.deepspeed_block import Precision
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import Update

MAX_SKIPPED_IN_A_ROW = 8
"""fp16 steps that may overflow one after the other before the run is called diverged."""


class DivergenceGuard:
    """The checks of one run, on numbers that are the same on every rank. ``step`` counts from 0."""

    def __init__(self, precision: Precision, *, skip_limit: int = 0) -> None:
        """
        Args:
            skip_limit: steps in a row that may be refused because something is not finite (``numerics.skip_limit``).
        """
        self._may_overflow = precision == "fp16"
        self._skip_limit = skip_limit
        self._refused_in_a_row = 0
        self._overflows_in_a_row = 0

    def find_problem(
        self,
        update: Update,
        sums: Mapping[str, float],
        *,
        norm: float | None = None,
        applied: bool = True,
        where: Callable[[str], str] = lambda name: "",
    ) -> str:
        """What was not finite in an update that for this reason changed nothing, as a part of a sentence; "" where
        nothing was.

        Args:
            sums: of the loss terms.
            norm: of the gradient; None where it is not known. One that is not finite is an overflow in fp16.
            applied: False: the optimizer refused the update by itself.
            where: of a loss that is not finite, words that say on which ranks; collective.
        """
        part = f" of the {update.part}" if update.part else ""
        for name in update.weights:
            if not math.isfinite(sums[name]):
                return f"the loss ({name}) is {sums[name]}{where(name)}; no weight{part} was changed at this step"
        norm = norm if applied else math.nan
        if norm is None or self._may_overflow or math.isfinite(norm):
            return ""
        return f"the gradient norm is {norm} while the loss is finite; no weight was changed at this step"

    def judge(self, problem: str, *, applied: bool, step: int) -> None:
        """After a step: go on, or not.

        Args:
            problem: see ``find_problem``.
            applied: False: an optimizer refused an update.

        Raises:
            DivergenceError: one step too many was refused in a row, or overflowed in fp16.
        """
        self._refused_in_a_row = self._refused_in_a_row + 1 if problem else 0
        if self._refused_in_a_row > self._skip_limit:
            raise self.error(problem, step=step)
        self._overflows_in_a_row = 0 if applied else self._overflows_in_a_row + 1
        if self._may_overflow and self._overflows_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"step {step + 1}: {self._overflows_in_a_row} fp16 steps in a row overflowed; use bf16, or lower "
                "optimizer.lr; the run resumes from its last checkpoint"
            )

    def error(self, problem: str, *, step: int) -> DivergenceError:
        """That ends the run."""
        before = f", as {self._skip_limit} before it were" if self._skip_limit else ""
        what = "Lower optimizer.lr, lengthen the warm-up or use bf16" if self._may_overflow else _WHAT_TO_DO
        return DivergenceError(
            f"step {step + 1}: {problem}{before}. {what}, and start again: the run resumes from its last checkpoint"
        )


_WHAT_TO_DO = "Lower optimizer.lr or lengthen the warm-up"
