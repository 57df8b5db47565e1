"""One optimizer step, and validation, of a rank that holds the layers of a pipeline stage, by DeepSpeed's schedule.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.schedule import (
    BackwardPass,
    ForwardPass,
    InferenceSchedule,
    OptimizerStep,
    PipeInstruction,
    RecvActivation,
    RecvGrad,
    ReduceGrads,
    ReduceTiedGrads,
    SendActivation,
    SendGrad,
    TrainSchedule,
)
from torch import Tensor, distributed

from megadeberta.batch import Batch, equal_shapes, fields_given
from megadeberta.config.batches import BatchSizes
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.launched import LaunchedUpdate
from megadeberta.engine.phases import BACKWARD, EXCHANGE, FORWARD, UPDATE, PhaseClock
from megadeberta.engine.step import Stepper
from megadeberta.engine.terms import TermPair, TermSums
from megadeberta.layers.objectives import Update
from megadeberta.topology import Topology

_PHASES: dict[type[PipeInstruction], str] = {
    ForwardPass: FORWARD,
    BackwardPass: BACKWARD,
    **dict.fromkeys((ReduceGrads, ReduceTiedGrads, OptimizerStep), UPDATE),
    **dict.fromkeys((SendActivation, RecvActivation, SendGrad, RecvGrad), EXCHANGE),
}


class PipelineStepper(Stepper):
    """Runs a schedule over all micro batches at once.

    The ranks of the first stage are given the data; the others may be given none. Equality kept: the stages together
    do what the whole model does.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        *,
        updates: Sequence[Update],
        batch_fields: Sequence[str],
        settings: EngineSettings,
        topology: Topology,
        device: torch.device,
        terms: Sequence[str],
        host_group: distributed.ProcessGroup | None = None,
        skip_limit: int = 0,
        batches: BatchSizes | None = None,
    ) -> None:
        """``terms``: names of all terms that the last stage makes; the rest as for ``Stepper``."""
        super().__init__(
            engine,
            updates=updates,
            batch_fields=batch_fields,
            settings=settings,
            topology=topology,
            device=device,
            host_group=host_group,
            skip_limit=skip_limit,
            batches=batches,
        )
        # Tensor-parallel ranks have the same terms: one of them counts.
        self._counts_terms = self.place.stage == topology.pipeline - 1 and self.place.tensor == 0
        self._terms = tuple(terms)
        self._sums: TermSums | None = None
        self._loss_of: Callable[[Mapping[str, TermPair]], Tensor] = self._no_loss
        engine.module.loss_fn = self._take_terms
        engine._compute_loss = True
        # DeepSpeed 0.19.8 looks each instruction up there and has no other place to measure it.
        engine._INSTRUCTION_MAP = _timed(engine._INSTRUCTION_MAP, self.clock)

    def _update(
        self,
        update: Update,
        batches: Sequence[Batch],
        *,
        before: Sequence[LaunchedUpdate],
        step: int,
        targets: Mapping[str, int],
    ) -> LaunchedUpdate:
        engine = self.engine
        shared: list[TermSums] = []

        def before_update() -> None:
            with self.clock.phase(UPDATE):
                shared.append(self._share_terms())
                self._judge(update, shared[0], before, step=step)

        # DeepSpeed divides the loss by the number of micro batches; the global count is the divisor wanted here.
        self._loss_of = lambda terms: self._loss(update, terms, targets) * engine.micro_batches
        schedule = _CheckedSchedule(engine.micro_batches, engine.num_stages, engine.stage_id)
        schedule.before_update = before_update
        self._run(schedule, batches)
        norm, own = self._reported_norm(), self._sums or TermSums(self._terms, torch.zeros_like(shared[0].values))
        return LaunchedUpdate(update, shared[0], norm, engine.was_step_applied(), own=own)

    def _validate(self, batches: Sequence[Batch], *, passes: int) -> TermSums | None:
        # All batches of a rank have one length, and what passes between two stages one shape.
        like = batches[0] if batches else self._blank_batch()
        blank = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        self._loss_of, self._sums = self._no_loss, None
        if passes:
            schedule = InferenceSchedule(passes, self.engine.num_stages, self.engine.stage_id)
            self._run(schedule, [*batches, *[blank] * (passes - len(batches))])
        return self._share_terms()

    def _run(self, schedule: TrainSchedule | InferenceSchedule, batches: Sequence[Batch]) -> None:
        """Run the schedule over these micro batches, or over those that the stage before sends."""
        engine = self.engine
        self._sums = None
        engine.total_loss = None
        # Shapes may differ from the last step's: they are announced once for each run of a schedule.
        engine.reset_activation_shape()
        engine.set_dataiterator(self._inputs(batches) if engine.is_first_stage() else itertools.repeat((None, None)))
        engine._exec_schedule(schedule)

    def _inputs(self, batches: Sequence[Batch]) -> Iterator[tuple[tuple[Tensor, ...], None]]:
        """The batches as tuples of equal shapes; DeepSpeed asks for labels too."""
        for batch in equal_shapes(batches):
            yield tuple(batch[name] for name in fields_given(self._batch_fields, len(batch))), None

    def _take_terms(self, terms: Mapping[str, TermPair], _labels: None) -> Tensor:
        """Called by DeepSpeed on the last stage with what it made of one micro batch."""
        terms = {name: terms[name] for name in self._terms}
        self._sums = TermSums.of(terms) if self._sums is None else self._sums.plus(terms)
        return self._loss_of(terms)

    def _no_loss(self, terms: Mapping[str, TermPair]) -> Tensor:
        return torch.zeros((), device=self.device)

    def _share_terms(self) -> TermSums:
        """The terms of all micro batches, on every rank. One all-reduce over the world."""
        values = torch.zeros(len(self._terms), 2, dtype=torch.float64, device=self.device)
        if self._counts_terms and self._sums is not None:
            values = self._sums.values.clone()
        distributed.all_reduce(values)
        return TermSums(self._terms, values)


def _timed(
    instructions: Mapping[type[PipeInstruction], Callable[..., None]], clock: PhaseClock
) -> dict[type[PipeInstruction], Callable[..., None]]:
    """DeepSpeed's methods by instruction, those of a phase measured."""

    def timed(method: Callable[..., None], name: str) -> Callable[..., None]:
        def run(*arguments: Any, **more: Any) -> None:
            with clock.phase(name):
                method(*arguments, **more)

        return run

    return {kind: timed(method, _PHASES[kind]) if kind in _PHASES else method for kind, method in instructions.items()}


class _CheckedSchedule(TrainSchedule):
    """DeepSpeed's 1F1B schedule, with a call between the reduction of the gradients and the update."""

    before_update: Callable[[], None]

    def steps(self) -> Iterator[list[PipeInstruction]]:
        for commands in super().steps():
            update = [command for command in commands if isinstance(command, OptimizerStep)]
            yield [command for command in commands if command not in update]
            if update:
                self.before_update()
                yield update
