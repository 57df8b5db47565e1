"""One optimizer step, and validation, of a rank that holds all layers, or a shard of each.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import deepspeed
import torch
from torch import Tensor, distributed, nn

from megadeberta.batch import Batch
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.step import Stepper, UpdateResult, add_terms
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
        mpu: ModelParallelUnit | None = None,
    ) -> None:
        """``mpu``: as for ``build_engine``; the rest as for ``Stepper``."""
        super().__init__(
            engine, updates=updates, batch_fields=batch_fields, settings=settings, topology=topology, device=device
        )
        self._mpu = mpu
        self._data_group = None if mpu is None else mpu.get_data_parallel_group()
        # DeepSpeed's ZeRO and 16-bit optimizers refuse to step on a gradient that is not finite; plain fp32 does not.
        self._unguarded = settings.zero_stage == 0 and not settings.is_half

    def _update(
        self, update: Update, batches: Sequence[Batch], *, step: int, targets: Mapping[str, int]
    ) -> UpdateResult:
        sums: dict[str, Tensor] = {}
        handed_on = []
        last = len(batches) - 1
        grad_norm = math.nan
        for number, batch in enumerate(batches):
            terms, more = self.engine(**batch, part=update.part)
            handed_on.append(more)
            self.engine.backward(self._loss(update, terms, targets), scale_wrt_gas=False)
            add_terms(sums, terms)
            if number == last:
                self._add_over_ranks(sums)
                self.guard.check_loss(sums, update, step=step)
                if self._unguarded:
                    grad_norm = gradient_norm(self.engine.module.parameters(), device=self.device, mpu=self._mpu)
                    self.guard.check_gradient(grad_norm, step=step)
            self.engine.step()
        applied = self.engine.was_step_applied()
        if not self._unguarded:
            grad_norm = self._reported_norm()
            self.guard.check_applied(applied, step=step)
        return UpdateResult(sums, grad_norm, applied, handed_on)

    def _validate(self, batches: Sequence[Batch], *, passes: int) -> Mapping[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for number in range(passes):
            terms, _ = self.engine(**(batches[number] if number < len(batches) else self._blank_batch()))
            add_terms(sums, terms)
        self._add_over_ranks(sums)
        return sums

    def _add_over_ranks(self, sums: dict[str, Tensor]) -> None:
        """Sum over the data-parallel ranks, all terms in one call; every rank has the same terms in the same order,
        and ranks that share a model have equal ones."""
        if not sums:
            return
        stacked = torch.stack(list(sums.values()))
        distributed.all_reduce(stacked, group=self._data_group)
        sums.update(zip(sums, stacked, strict=True))


def gradient_norm(
    parameters: Iterable[nn.Parameter], *, device: torch.device, mpu: ModelParallelUnit | None = None
) -> float:
    """Global L2 norm of gradients that are averaged over the data-parallel ranks already.

    All-reduces over tp, where there is one: some parameters are there whole on every rank, of others it has a shard.
    """
    # In fp64: on a CPU the fp32 norm of a table of 100M elements is 1 % too small.
    squares = torch.zeros(2, dtype=torch.float64, device=device)  # of what every rank has, of shards
    for parameter in parameters:
        if parameter.grad is not None:
            is_shard = getattr(parameter, "tensor_model_parallel", False)
            squares[int(is_shard)] += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64).square()
    if mpu is not None:
        squares[0] *= mpu.get_tensor_model_parallel_rank() == 0
        distributed.all_reduce(squares, group=mpu.get_tensor_model_parallel_group())
    return math.sqrt(float(squares.sum()))
