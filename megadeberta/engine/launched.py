"""A step whose work is under way on the device, and what it did, read in one copy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from megadeberta.batch import Batch
from megadeberta.engine.divergence import DivergenceGuard
from megadeberta.engine.phases import StepPhases
from megadeberta.engine.terms import Terms, TermSums
from megadeberta.layers.objectives import Update


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    terms: Terms
    grad_norms: Mapping[str, float]
    """Of each update, by the part of the model; "" = all of it."""
    applied: bool
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase, of this rank alone."""
    refused: str = ""
    """What was not finite, as a part of a sentence, where the run goes on all the same; loss or norms are not then."""

    @property
    def grad_norm(self) -> float:
        return math.hypot(*self.grad_norms.values())


@dataclass(frozen=True)
class EvalResult:
    """Total loss and terms over all validation sequences; NaN and no means when there were none."""

    loss: float
    terms: Terms
    sources: Mapping[str, "EvalResult"] = field(default_factory=dict)
    """The same of each validation file, where there are several."""


@dataclass(frozen=True)
class LaunchedUpdate:
    """One update of a step, over all ranks, of which nothing has been read yet."""

    update: Update
    sums: TermSums
    grad_norm: Tensor | float | None
    """None: the optimizer says none."""
    applied: bool
    """False: the optimizer refused it by itself."""
    handed_on: Sequence[Batch] = ()
    """The micro batches of the next update, if there is one."""
    own: TermSums | None = None
    """Of this rank alone; None where they are those of all."""


class LaunchedStep:
    """What was launched of one step; between that and ``result`` the host may do something else."""

    def __init__(
        self,
        updates: Sequence[LaunchedUpdate],
        *,
        step: int,
        guard: DivergenceGuard,
        phases: StepPhases,
        ranks_where: Callable[[bool], Sequence[int]] = lambda found: [],
    ) -> None:
        """``ranks_where``: the ranks on which something was found; collective over all of them."""
        self._updates = updates
        self._phases = phases
        self._step = step
        self._guard = guard
        self._ranks_where = ranks_where

    def result(self) -> StepResult:
        """Waits for the device; one copy to the host.

        Raises:
            DivergenceError: the loss or the gradient is not finite, once too often in a row; no weight of that part was
                changed.
        """
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        norms: dict[str, float] = {}
        problem, applied = "", all(each.applied for each in self._updates)
        for each, (terms, norm) in zip(self._updates, _read(self._updates), strict=True):
            problem = problem or self._guard.find_problem(
                each.update, terms.sums, norm=norm, applied=each.applied, where=partial(self._where, each.own)
            )
            sums |= terms.sums
            counts |= terms.counts
            norms[each.update.part or ""] = math.nan if norm is None else norm
        self._guard.judge(problem, applied=applied, step=self._step)
        terms = Terms(sums, counts)
        loss = terms.total([each.update for each in self._updates])
        return StepResult(loss, terms, norms, applied and not problem, self._phases.seconds(), problem)

    def _where(self, own: TermSums | None, name: str) -> str:
        """Of a loss that is not finite."""
        if own is None:
            return ""
        ranks = self._ranks_where(not math.isfinite(own.total(name)))
        shown = ", ".join(map(str, ranks[:_MOST_RANKS]))
        more = f" and {len(ranks) - _MOST_RANKS} more" if len(ranks) > _MOST_RANKS else ""
        return f" on rank{'s' if len(ranks) > 1 else ''} {shown}{more}" if ranks else ""


_MOST_RANKS = 8


def _read(updates: Sequence[LaunchedUpdate]) -> list[tuple[Terms, float | None]]:
    """Terms and gradient norm of each update; all that is on the device in one copy."""
    on_device = [each.sums.values.flatten() for each in updates]
    on_device += [each.grad_norm.double().view(1) for each in updates if isinstance(each.grad_norm, Tensor)]
    numbers = iter(torch.cat(on_device).tolist())
    terms = [each.sums.read([next(numbers) for _ in range(each.sums.values.numel())]) for each in updates]
    norms = [next(numbers) if isinstance(each.grad_norm, Tensor) else each.grad_norm for each in updates]
    return list(zip(terms, norms, strict=True))
