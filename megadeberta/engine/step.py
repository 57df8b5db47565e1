"""One optimizer step, and validation, with losses that do not depend on how the batch is cut.

Shapes: B micro batch · L length · Q target rows per sequence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, distributed

from megadeberta.batch import Batch, blank_batch
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.terms import Terms
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import Update
from megadeberta.layers.terms import term

MAX_SKIPPED_IN_A_ROW = 8
"""fp16 steps that may overflow one after the other before the run is called diverged."""
BLANK_LENGTH = 8
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


class Stepper:
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
        device: torch.device,
        mpu: ModelParallelUnit | None = None,
    ) -> None:
        """
        Args:
            updates: of one optimizer step, in order.
            batch_fields: names of a batch's tensors.
            settings: of the block that the engine was built with.
            mpu: as for ``build_engine``.
        """
        self.engine = engine
        self.updates = updates
        self._batch_fields = tuple(batch_fields)
        self.device = device
        # Taken now: a resumed optimizer brings the groups' settings of the run that saved it.
        self._lr_scales = [group["lr_scale"] for group in engine.optimizer.param_groups]
        self._mpu = mpu
        self._data_group = None if mpu is None else mpu.get_data_parallel_group()
        self._tensor_parallel = 1 if mpu is None else mpu.get_tensor_model_parallel_world_size()
        self.data_parallel = distributed.get_world_size() // self._tensor_parallel
        self._blank_length = BLANK_LENGTH * self._tensor_parallel
        self._fp16 = settings.precision == "fp16"
        # DeepSpeed's ZeRO and 16-bit optimizers refuse to step on a gradient that is not finite; plain fp32 does not.
        self._unguarded = settings.zero_stage == 0 and not settings.is_half
        self._skipped_in_a_row = 0

    def share_counts(self, micro_batches: Sequence[Batch], *, stop_requested: bool) -> tuple[dict[str, int], bool]:
        """Targets of every loss term in the global batch, and whether any rank was asked to stop. One all-reduce over
        the world, in which ranks that share a model count the same samples."""
        names = [name for update in self.updates for name in update.weights]
        mine = [sum(int(_count_targets(name, batch)) for batch in micro_batches) for name in names]
        shared = torch.tensor([*mine, int(stop_requested)], device=self.device)
        distributed.all_reduce(shared)
        *counts, stop = shared.tolist()
        return {name: count // self._tensor_parallel for name, count in zip(names, counts, strict=True)}, bool(stop)

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
        batches = [self._to_device(batch) for batch in micro_batches]
        terms: dict[str, Tensor] = {}
        norms, applied = {}, True
        for update in self.updates:
            for group, scale in zip(self.engine.optimizer.param_groups, self._lr_scales, strict=True):
                group["lr"] = lr * scale
                group["active"] = update.part in (None, group["part"])
            found, norm, was_applied, batches = self._update(update, batches, step=step, targets=targets)
            terms |= found
            norms[update.part or ""] = norm
            applied = applied and was_applied
        result = as_terms(terms)
        return StepResult(result.total(self.updates), result, norms, applied)

    def _update(
        self, update: Update, batches: Sequence[Batch], *, step: int, targets: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], float, bool, list[Batch]]:
        """One update: its terms over all ranks, gradient norm, whether it was applied, and the next one's batches."""
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
                self._check_loss(sums, update, step)
                if self._unguarded:
                    grad_norm = self._check_gradient(step)
            self.engine.step()
        applied = self.engine.was_step_applied()
        if not self._unguarded:
            grad_norm = self._reported_norm()
            self._check_applied(applied, step)
        return sums, grad_norm, applied, handed_on

    def _loss(self, update: Update, terms: Mapping[str, tuple[Tensor, Tensor]], targets: Mapping[str, int]) -> Tensor:
        """What a micro batch adds to the loss of the step."""
        # DeepSpeed averages gradients over data-parallel ranks; the global count is the divisor wanted here.
        parts = [
            terms[name][0] * (weight * self.data_parallel / max(1, targets[name]))
            for name, weight in update.weights.items()
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> EvalResult:
        """Terms over all ranks' batches. Ranks may hold different numbers of batches; all make equally many forward
        passes, because ZeRO-3 gathers weights in each. All-reduces over the world twice."""
        self.engine.eval()
        passes = torch.tensor(len(batches), device=self.device)
        distributed.all_reduce(passes, op=distributed.ReduceOp.MAX)
        sums: dict[str, Tensor] = {}
        for number in range(int(passes)):
            batch = batches[number] if number < len(batches) else self._blank_batch()
            terms, _ = self.engine(**self._to_device(batch))
            add_terms(sums, terms)
        self._add_over_ranks(sums)
        result = as_terms(sums)
        return EvalResult(result.total(self.updates), result)

    def _blank_batch(self) -> Batch:
        """What a rank without a batch passes forward."""
        return blank_batch(self._batch_fields, length=self._blank_length, device=self.device)

    def _add_over_ranks(self, sums: dict[str, Tensor]) -> None:
        """Sum over the data-parallel ranks, all terms in one call; every rank has the same terms in the same order,
        and ranks that share a model have equal ones."""
        if not sums:
            return
        stacked = torch.stack(list(sums.values()))
        distributed.all_reduce(stacked, group=self._data_group)
        sums.update(zip(sums, stacked, strict=True))

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _check_loss(self, sums: Mapping[str, Tensor], update: Update, step: int) -> None:
        for name in update.weights:
            loss_sum = float(sums[name][0])
            if not math.isfinite(loss_sum):
                where = f" of the {update.part}" if update.part else ""
                raise DivergenceError(
                    f"step {step + 1}: the loss ({name}) is {loss_sum}; no weight{where} was changed at this step. "
                    "Lower optimizer.lr, lengthen the warm-up or use bf16, and start again: the run resumes from its "
                    "last checkpoint"
                )

    def _check_gradient(self, step: int) -> float:
        """Global L2 norm of the averaged gradient under ZeRO-0 in fp32; one reduction was done by DeepSpeed.

        All-reduce over tp of what the ranks hold shards of.
        """
        # In fp64: on a CPU the fp32 norm of a table of 100M elements is 1 % too small.
        squares = torch.zeros(2, dtype=torch.float64, device=self.device)  # of what every rank has, of shards
        for parameter in self.engine.module.parameters():
            if parameter.grad is not None:
                is_shard = getattr(parameter, "tensor_model_parallel", False)
                squares[int(is_shard)] += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64).square()
        if self._mpu is not None:
            squares[0] *= self._mpu.get_tensor_model_parallel_rank() == 0
            distributed.all_reduce(squares, group=self._mpu.get_tensor_model_parallel_group())
        norm = math.sqrt(float(squares.sum()))
        if not math.isfinite(norm):
            raise DivergenceError(_bad_gradient(step, norm))
        return norm

    def _check_applied(self, applied: bool, step: int) -> None:
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if applied:
            return
        if not self._fp16:
            raise DivergenceError(_bad_gradient(step, math.nan))
        if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"step {step + 1}: {self._skipped_in_a_row} fp16 steps in a row overflowed; use bf16, or lower "
                "optimizer.lr; the run resumes from its last checkpoint"
            )

    def _reported_norm(self) -> float:
        norm = self.engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)


def _count_targets(name: str, batch: Batch) -> Tensor:
    """Targets of a loss term in a batch: a scalar."""
    count = term(name).count_targets
    assert count is not None, f"{name} is no loss"
    return count(batch)


def _bad_gradient(step: int, norm: float) -> str:
    return (
        f"step {step + 1}: the gradient norm is {norm} while the loss is finite; no weight was changed at this step. "
        "Lower optimizer.lr or lengthen the warm-up, and start again: the run resumes from its last checkpoint"
    )


def add_terms(sums: dict[str, Tensor], terms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add the (sum, count) of a micro batch, in fp64."""
    for name, (total, count) in terms.items():
        pair = torch.stack([total.detach().double(), count.double()])
        sums[name] = sums[name] + pair if name in sums else pair


def as_terms(sums: Mapping[str, Tensor]) -> Terms:
    """From (sum, count) pairs, each one tensor."""
    pairs = {name: pair.tolist() for name, pair in sums.items()}
    return Terms({name: pair[0] for name, pair in pairs.items()}, {name: int(pair[1]) for name, pair in pairs.items()})
