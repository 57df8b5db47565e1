"""One optimizer step, and validation, of a rank that holds all layers, or a shard of each.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

from collections.abc import Iterable, Mapping, Sequence

import deepspeed
import torch
from torch import Tensor, distributed, nn

from megadeberta.batch import Batch
from megadeberta.config.batches import BatchSizes
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.launched import LaunchedUpdate
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.phases import BACKWARD, FORWARD, UPDATE
from megadeberta.engine.step import Stepper
from megadeberta.engine.terms import TermSums
from megadeberta.layers.objectives import Update
from megadeberta.topology import Topology


class WholeStepper(Stepper):
    """Calls the engine once for each micro batch."""

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
        mpu: ModelParallelUnit | None = None,
    ) -> None:
        """``mpu``: as for ``build_engine``; the rest as for ``Stepper``."""
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
        self._mpu = mpu
        self._data_group = None if mpu is None else mpu.get_data_parallel_group()
        # DeepSpeed's ZeRO and 16-bit optimizers refuse to step on a gradient that is not finite; plain fp32 does not.
        self._unguarded = settings.zero_stage == 0 and not settings.is_half

    def _update(
        self,
        update: Update,
        batches: Sequence[Batch],
        *,
        before: Sequence[LaunchedUpdate],
        step: int,
        targets: Mapping[str, int],
    ) -> LaunchedUpdate:
        sums: TermSums | None = None
        handed_on = []
        own: TermSums | None = None
        own_norm: Tensor | None = None
        for number, batch in enumerate(batches):
            with self.clock.phase(FORWARD):
                terms, more = self.engine(**batch, part=update.part)
            handed_on.append(more)
            with self.clock.phase(BACKWARD):
                self.engine.backward(self._loss(update, terms, targets), scale_wrt_gas=False)
            sums = TermSums.of(terms) if sums is None else sums.plus(terms)
            with self.clock.phase(UPDATE):
                if number == len(batches) - 1:
                    own = sums.copy() if self.topology.data > 1 else None
                    self._add_over_ranks(sums)
                    if self._unguarded:
                        own_norm = gradient_norm(self.engine.module.parameters(), device=self.device, mpu=self._mpu)
                    self._judge(update, sums, before, step=step, grad_norm=own_norm)
                self.engine.step()
        assert sums is not None, "a step has one micro batch at least"
        norm = own_norm if self._unguarded else self._reported_norm()
        return LaunchedUpdate(update, sums, norm, self.engine.was_step_applied(), handed_on, own)

    def _validate(self, batches: Sequence[Batch], *, passes: int) -> TermSums | None:
        sums: TermSums | None = None
        for number in range(passes):
            terms, _ = self.engine(**(batches[number] if number < len(batches) else self._blank_batch()))
            sums = TermSums.of(terms) if sums is None else sums.plus(terms)
        if sums is not None:
            self._add_over_ranks(sums)
        return sums

    def _add_over_ranks(self, sums: TermSums) -> None:
        """Sum over the data-parallel ranks, in place; those that share a model have equal terms."""
        if self.topology.data > 1:
            distributed.all_reduce(sums.values, group=self._data_group)


def gradient_norm(
    parameters: Iterable[nn.Parameter], *, device: torch.device, mpu: ModelParallelUnit | None = None
) -> Tensor:
    """Global L2 norm of gradients that are averaged over the data-parallel ranks already, an fp64 scalar.

    All-reduces over tp, where there is one: some parameters are there whole on every rank, of others it has a shard.
    """
    norms: dict[bool, list[Tensor]] = {False: [], True: []}  # of what every rank has, of shards
    for parameter in parameters:
        if parameter.grad is not None:
            # In fp64: on a CPU the fp32 norm of a table of 100M elements is 1 % too small.
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
            norms[getattr(parameter, "tensor_model_parallel", False)].append(norm)
    none = torch.zeros((), dtype=torch.float64, device=device)
    squares = torch.stack([torch.stack([none, *norms[is_shard]]).square().sum() for is_shard in (False, True)])
    if mpu is not None:
        squares[0] *= mpu.get_tensor_model_parallel_rank() == 0
        distributed.all_reduce(squares, group=mpu.get_tensor_model_parallel_group())
    return squares.sum().sqrt()
