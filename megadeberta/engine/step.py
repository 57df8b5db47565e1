"""One optimizer step, and validation, with losses that do not depend on how the batch is cut.

``Stepper`` is what the training loop sees. How a rank runs its layers is in the subclasses: ``WholeStepper`` for all
layers of the model, ``PipelineStepper`` for those of a stage.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import deepspeed
import torch
from torch import Tensor, distributed

from megadeberta.batch import Batch, blank_batch, without_full_masks
from megadeberta.config.batches import BatchSizes
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.divergence import DivergenceGuard
from megadeberta.engine.launched import EvalResult, LaunchedStep, LaunchedUpdate, StepResult
from megadeberta.engine.phases import PhaseClock
from megadeberta.engine.terms import TermPair, Terms, TermSums
from megadeberta.engine.transfer import Transfer
from megadeberta.engine.update_gate import UpdateGate
from megadeberta.layers.objectives import Update
from megadeberta.layers.terms import term
from megadeberta.topology import Topology

_BLANK_LENGTH = 8
"""Tokens of a blank batch on each tensor-parallel rank: these may share them."""


class Flags(NamedTuple):
    """What a rank says of itself at the start of a step; shared, whether any rank does."""

    stops: bool = False
    """It was asked to stop."""
    writes: bool = False
    """It writes its part of a checkpoint."""
    saves: bool = False
    """By its clock a checkpoint is due."""


NO_FLAGS = Flags()


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
        host_group: distributed.ProcessGroup | None = None,
        skip_limit: int = 0,
        batches: BatchSizes | None = None,
    ) -> None:
        """
        Args:
            updates: of one optimizer step, in order.
            batch_fields: names of a batch's tensors, in the order in which the first layer takes them.
            settings: of the block that the engine was built with.
            host_group: all ranks, for tensors of the CPU; None where the default group takes those.
            skip_limit: ``numerics.skip_limit``.
            batches: of every step; None where all have that of the block.
        """
        self._batches = batches
        self.engine = engine
        self.updates = updates
        self.device = device
        self.topology = topology
        self.place = topology.coordinates(distributed.get_rank())
        self._host_group = host_group
        self.guard = DivergenceGuard(settings.precision, skip_limit=skip_limit)
        self.gate = UpdateGate(engine.optimizer)
        self._may_overflow = settings.precision == "fp16"
        self._transfer = Transfer(device)
        self.clock = PhaseClock(device)
        self._batch_fields = tuple(batch_fields)
        # Taken now: a resumed optimizer brings the groups' settings of the run that saved it.
        self._lr_scales = [group["lr_scale"] for group in engine.optimizer.param_groups]

    def share_counts(self, micro_batches: Sequence[Batch], flags: Flags = NO_FLAGS) -> tuple[dict[str, int], Flags]:
        """Targets of every loss term in the global batch, and what any rank says of itself. One all-reduce over the
        world, in which one of the ranks that have the same samples counts them. The hosts alone take part: the devices
        may still be busy with the last step."""
        names = [name for update in self.updates for name in update.weights]
        counted = micro_batches if self.place.stage == 0 and self.place.tensor == 0 else ()
        mine = [sum(int(_count_targets(name, batch)) for batch in counted) for name in names]
        shared = torch.tensor([*mine, *map(int, flags)])
        distributed.all_reduce(shared, group=self._host_group)
        counts, found = shared.tolist()[: len(names)], shared.tolist()[len(names) :]
        return dict(zip(names, counts, strict=True)), Flags(*map(bool, found))

    def train_step(
        self, micro_batches: Sequence[Batch], *, step: int, targets: Mapping[str, int], lr: float
    ) -> StepResult:
        """``launch_step`` and its result."""
        return self.launch_step(micro_batches, step=step, targets=targets, lr=lr).result()

    def launch_step(
        self, micro_batches: Sequence[Batch], *, step: int, targets: Mapping[str, int], lr: float
    ) -> LaunchedStep:
        """Forward, backward and update for global step ``step`` (counted from 0), once for every update of it. Nothing
        here waits for the device, except inside DeepSpeed's own step.

        Args:
            targets: of every loss term, from ``share_counts``.
            lr: of this step; a part of the model with a rate of its own keeps its ratio to it.

        Raises:
            DivergenceError: as ``LaunchedStep.result``, where an optimizer on the host had to be kept from stepping.
        """
        self.engine.train()
        self._set_batch(step)
        batches: Sequence[Batch] = self._transfer(without_full_masks(micro_batches))
        launched: list[LaunchedUpdate] = []
        for update in self.updates:
            for group, scale in zip(self.engine.optimizer.param_groups, self._lr_scales, strict=True):
                group["lr"] = lr * scale
                group["active"] = update.changes(group["part"])
            launched.append(self._update(update, batches, before=launched, step=step, targets=targets))
            batches = launched[-1].handed_on
            if not (launched[-1].applied or self._may_overflow):
                break  # the next update must not follow this one
        phases = self.clock.take()
        return LaunchedStep(launched, step=step, guard=self.guard, phases=phases, ranks_where=self._ranks_where)

    def _ranks_where(self, found: bool) -> list[int]:
        """The ranks that found something. One all-reduce over the world."""
        ranks = torch.zeros(self.topology.world_size, dtype=torch.int64)
        ranks[distributed.get_rank()] = found
        distributed.all_reduce(ranks, group=self._host_group)
        return ranks.nonzero().flatten().tolist()

    def _set_batch(self, step: int) -> None:
        """Tell DeepSpeed how many micro batches step ``step`` has, where that is another number than before."""
        engine = self.engine
        if self._batches is None or self._batches.at(step) == engine.train_batch_size():
            return
        engine.set_train_batch_size(self._batches.at(step))
        # DeepSpeed 0.19.8 takes every k-th micro batch since the start for the last one of a step (runtime/engine.py,
        # is_gradient_accumulation_boundary): with another k it must begin to count anew. Its ZeRO 1 and 2 ask for more
        # than one micro batch when they take the norm of offloaded gradients, and have a copy of the number.
        engine.micro_steps = 0
        if hasattr(engine.optimizer, "gradient_accumulation_steps"):
            engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> EvalResult:
        """Terms over the batches of all ranks, which may hold different numbers of them. All-reduces over the world
        twice."""
        self.engine.eval()
        passes = torch.tensor(len(batches))
        distributed.all_reduce(passes, op=distributed.ReduceOp.MAX, group=self._host_group)
        found = self._validate(self._transfer(batches), passes=int(passes))
        self.clock.take()  # a step's phases are those of training
        result = Terms({}, {}) if found is None else found.read(found.values.flatten().tolist())
        return EvalResult(result.total(self.updates), result)

    def evaluate_sources(self, batches: Mapping[str, Sequence[Batch]]) -> EvalResult:
        """``evaluate`` of each validation file, and of all together. The same names on every rank.

        Args:
            batches: of this rank by the name of the file.
        """
        found = {name: self.evaluate(of_source) for name, of_source in batches.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        terms = Terms.joined([result.terms for result in found.values()])
        return EvalResult(terms.total(self.updates), terms, found)

    @abstractmethod
    def _update(
        self,
        update: Update,
        batches: Sequence[Batch],
        *,
        before: Sequence[LaunchedUpdate],
        step: int,
        targets: Mapping[str, int],
    ) -> LaunchedUpdate:
        """Forward, backward and update of one part of the model.

        Args:
            before: the updates of this step so far; where one of them was not finite, this one changes nothing.

        Raises:
            DivergenceError: see ``launch_step``.
        """

    @abstractmethod
    def _validate(self, batches: Sequence[Batch], *, passes: int) -> TermSums | None:
        """The terms over the batches of all ranks, None where there are none. Every rank makes ``passes`` forward
        passes, because a pass communicates: stages, tensor-parallel ranks, and ZeRO-3 in every layer."""

    def _loss(self, update: Update, terms: Mapping[str, TermPair], targets: Mapping[str, int]) -> Tensor:
        """What a micro batch adds to the loss of the step."""
        # DeepSpeed averages gradients over data-parallel ranks; the global count is the divisor wanted here.
        parts = [
            terms[name][0] * (weight * self.topology.data / max(1, targets[name]))
            for name, weight in update.weights.items()
        ]
        return functools.reduce(torch.add, parts)

    def _judge(
        self,
        update: Update,
        sums: TermSums,
        before: Sequence[LaunchedUpdate],
        *,
        step: int,
        grad_norm: Tensor | None = None,
    ) -> None:
        """Before the optimizer steps: let it change something only if the losses are finite, those of earlier updates
        and their gradients too, and ``grad_norm`` where it is given.

        Raises:
            DivergenceError: a loss is not, and the optimizer runs on the host.
        """
        if not self.gate.is_on_device:
            terms = sums.read(sums.values.flatten().tolist())
            if problem := self.guard.find_problem(update, terms.sums):
                raise self.guard.error(problem, step=step)
            return
        pairs = [(each.update, each.sums) for each in before] + [(update, sums)]
        numbers = [known.total(name) for each, known in pairs for name in each.weights]
        norms = [grad_norm] if self._may_overflow else [grad_norm, *(each.grad_norm for each in before)]
        self.gate.judge(*numbers, *(norm.double() for norm in norms if isinstance(norm, Tensor)))

    def _blank_batch(self) -> Batch:
        """What a rank without a batch passes forward."""
        return blank_batch(self._batch_fields, length=_BLANK_LENGTH * self.topology.tensor, device=self.device)

    def _reported_norm(self) -> Tensor | float | None:
        return self.engine.get_global_grad_norm()


def _count_targets(name: str, batch: Batch) -> Tensor:
    """Targets of a loss term in a batch: a scalar."""
    count = term(name).count_targets
    assert count is not None, f"{name} is no loss"
    return count(batch)
