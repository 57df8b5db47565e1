"""One optimizer step, and validation, with losses that do not depend on how the batch is cut.

``Stepper`` is what the training loop sees. How a rank runs its layers is in the subclasses: ``WholeStepper`` for all
layers of the model, ``PipelineStepper`` for those of a stage.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, distributed

from megadeberta.batch import Batch, blank_batch
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.divergence import DivergenceGuard
from megadeberta.engine.terms import Terms
from megadeberta.layers.objectives import Update
from megadeberta.layers.terms import term
from megadeberta.topology import Topology

TermPair = tuple[Tensor, Tensor]
"""(sum, count) of a term over a micro batch, both scalars."""
_BLANK_LENGTH = 8
"""Tokens of a blank batch on each tensor-parallel rank: these may share them."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    terms: Terms
    grad_norms: Mapping[str, float]
    """Of each update, by the part of the model; "" = all of it."""
    applied: bool

    @property
    def grad_norm(self) -> float:
        return math.hypot(*self.grad_norms.values())


@dataclass(frozen=True)
class EvalResult:
    """Total loss and terms over all validation sequences; NaN and no means when there were none."""

    loss: float
    terms: Terms


@dataclass(frozen=True)
class UpdateResult:
    """What one update of a step did, over all ranks."""

    sums: Mapping[str, Tensor]
    """(sum, count) of each term, in one fp64 tensor."""
    grad_norm: float
    applied: bool
    handed_on: Sequence[Batch] = ()
    """The micro batches of the next update, if there is one."""


class Stepper(ABC):
    """Drives a DeepSpeed engine one optimizer step at a time.

    Equalities kept: ranks x accumulation x micro batch = one big batch, because every loss sum is divided once by its
    count over the whole global batch; resumed = uninterrupted, because dropout and samples are functions of the
    batch's sample numbers and not of a stream that would have to be restored.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        *,
        updates: Sequence[Update],
        batch_fields: Sequence[str],
        settings: EngineSettings,
        topology: Topology,
        device: torch.device,
    ) -> None:
        """
        Args:
            updates: of one optimizer step, in order.
            batch_fields: names of a batch's tensors, in the order in which the first layer takes them.
            settings: of the block that the engine was built with.
        """
        self.engine = engine
        self.updates = updates
        self.device = device
        self.topology = topology
        self.place = topology.coordinates(distributed.get_rank())
        self.guard = DivergenceGuard(settings.precision)
        self._batch_fields = tuple(batch_fields)
        # Taken now: a resumed optimizer brings the groups' settings of the run that saved it.
        self._lr_scales = [group["lr_scale"] for group in engine.optimizer.param_groups]

    def share_counts(self, micro_batches: Sequence[Batch], *, stop_requested: bool) -> tuple[dict[str, int], bool]:
        """Targets of every loss term in the global batch, and whether any rank was asked to stop. One all-reduce over
        the world, in which one of the ranks that have the same samples counts them."""
        names = [name for update in self.updates for name in update.weights]
        counted = micro_batches if self.place.stage == 0 and self.place.tensor == 0 else ()
        mine = [sum(int(_count_targets(name, batch)) for batch in counted) for name in names]
        shared = torch.tensor([*mine, int(stop_requested)], device=self.device)
        distributed.all_reduce(shared)
        *counts, stop = shared.tolist()
        return dict(zip(names, counts, strict=True)), bool(stop)

    def train_step(
        self, micro_batches: Sequence[Batch], *, step: int, targets: Mapping[str, int], lr: float
    ) -> StepResult:
        """Forward, backward and update for global step ``step`` (counted from 0), once for every update of it.

        Args:
            targets: of every loss term, from ``share_counts``.
            lr: of this step; a part of the model with a rate of its own keeps its ratio to it.

        Raises:
            DivergenceError: the loss or the gradient is not finite; no weight of that part was changed.
        """
        self.engine.train()
        batches: Sequence[Batch] = [self._to_device(batch) for batch in micro_batches]
        terms: dict[str, Tensor] = {}
        norms, applied = {}, True
        for update in self.updates:
            for group, scale in zip(self.engine.optimizer.param_groups, self._lr_scales, strict=True):
                group["lr"] = lr * scale
                group["active"] = update.part in (None, group["part"])
            done = self._update(update, batches, step=step, targets=targets)
            terms |= done.sums
            norms[update.part or ""] = done.grad_norm
            applied = applied and done.applied
            batches = done.handed_on
        result = as_terms(terms)
        return StepResult(result.total(self.updates), result, norms, applied)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> EvalResult:
        """Terms over the batches of all ranks, which may hold different numbers of them. All-reduces over the world
        twice."""
        self.engine.eval()
        passes = torch.tensor(len(batches), device=self.device)
        distributed.all_reduce(passes, op=distributed.ReduceOp.MAX)
        result = as_terms(self._validate([self._to_device(batch) for batch in batches], passes=int(passes)))
        return EvalResult(result.total(self.updates), result)

    @abstractmethod
    def _update(
        self, update: Update, batches: Sequence[Batch], *, step: int, targets: Mapping[str, int]
    ) -> UpdateResult:
        """Forward, backward and update of one part of the model.

        Raises:
            DivergenceError: see ``train_step``.
        """

    @abstractmethod
    def _validate(self, batches: Sequence[Batch], *, passes: int) -> Mapping[str, Tensor]:
        """(sum, count) of each term over the batches of all ranks. Every rank makes ``passes`` forward passes, because
        a pass communicates: stages, tensor-parallel ranks, and ZeRO-3 in every layer."""

    def _loss(self, update: Update, terms: Mapping[str, TermPair], targets: Mapping[str, int]) -> Tensor:
        """What a micro batch adds to the loss of the step."""
        # DeepSpeed averages gradients over data-parallel ranks; the global count is the divisor wanted here.
        parts = [
            terms[name][0] * (weight * self.topology.data / max(1, targets[name]))
            for name, weight in update.weights.items()
        ]
        return torch.stack(parts).sum()

    def _blank_batch(self) -> Batch:
        """What a rank without a batch passes forward."""
        return blank_batch(self._batch_fields, length=_BLANK_LENGTH * self.topology.tensor, device=self.device)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _reported_norm(self) -> float:
        norm = self.engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)


def add_terms(sums: dict[str, Tensor], terms: Mapping[str, TermPair]) -> None:
    """Add the (sum, count) of a micro batch, in fp64."""
    for name, (total, count) in terms.items():
        pair = torch.stack([total.detach().double(), count.double()])
        sums[name] = sums[name] + pair if name in sums else pair


def as_terms(sums: Mapping[str, Tensor]) -> Terms:
    """From (sum, count) pairs, each one tensor."""
    pairs = {name: pair.tolist() for name, pair in sums.items()}
    return Terms({name: pair[0] for name, pair in pairs.items()}, {name: int(pair[1]) for name, pair in pairs.items()})


def _count_targets(name: str, batch: Batch) -> Tensor:
    """Targets of a loss term in a batch: a scalar."""
    count = term(name).count_targets
    assert count is not None, f"{name} is no loss"
    return count(batch)
