"""One optimizer step, and validation, with losses that do not depend on how the batch is cut.

Shapes: B micro batch · L length · Q masked rows a sample.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, distributed

from megadeberta.config.deepspeed_block import is_enabled, zero_stage
from megadeberta.errors import DivergenceError

Batch = dict[str, Tensor]
MAX_SKIPPED_IN_A_ROW = 8
"""fp16 steps that may overflow one after the other before the run is called diverged."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    accuracy: float
    grad_norm: float
    targets: int
    applied: bool


@dataclass(frozen=True)
class EvalResult:
    """Masked-language-modelling loss in nats per masked token, and accuracy."""

    loss: float
    accuracy: float
    targets: int


class Stepper:
    """Drives a DeepSpeed engine one optimizer step at a time.

    Equalities kept: ranks x accumulation x micro batch = one big batch, because the loss sum is divided once by the
    masked count of the whole global batch; resumed = uninterrupted, because every dropout draw is seeded by (seed,
    step, rank, micro batch) and not by a stream that would have to be restored.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, *, seed: int, device: torch.device) -> None:
        self.engine = engine
        self.seed = seed
        self.device = device
        self.rank = distributed.get_rank()
        self.data_parallel = distributed.get_world_size()
        block = engine.config
        self._fp16 = is_enabled(block, "fp16")
        # DeepSpeed's ZeRO and 16-bit optimizers refuse to step on a gradient that is not finite; plain fp32 does not.
        self._unguarded = zero_stage(block) == 0 and not (self._fp16 or is_enabled(block, "bf16"))
        self._skipped_in_a_row = 0

    def share_counts(self, micro_batches: Sequence[Batch], *, stop_requested: bool) -> tuple[int, bool]:
        """Masked tokens of the global batch, and whether any rank was asked to stop. One all-reduce over the world."""
        targets = sum(int((batch["masked_labels"] != 0).sum()) for batch in micro_batches)
        shared = torch.tensor([targets, int(stop_requested)], device=self.device)
        distributed.all_reduce(shared)
        return int(shared[0]), bool(shared[1])

    def train_step(self, micro_batches: Sequence[Batch], *, step: int, targets: int, lr: float) -> StepResult:
        """Forward, backward and update for global step ``step`` (counted from 0).

        Raises:
            DivergenceError: the loss or the gradient is not finite; no weight was changed.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.train()
        # DeepSpeed averages gradients over data-parallel ranks; the global masked count is the divisor wanted here.
        factor = self.data_parallel / targets
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, correct, targets
        last = len(micro_batches) - 1
        grad_norm = math.nan
        for number, batch in enumerate(micro_batches):
            self._seed_dropout(step, number)
            loss_sum, count, correct = self.engine(**self._to_device(batch))
            self.engine.backward(loss_sum * factor, scale_wrt_gas=False)
            sums += torch.stack([loss_sum.detach().double(), correct.double(), count.double()])
            if number == last:
                distributed.all_reduce(sums)
                self._check_loss(float(sums[0]), step)
                if self._unguarded:
                    grad_norm = self._check_gradient(step)
            self.engine.step()
        applied = self.engine.was_step_applied()
        if not self._unguarded:
            grad_norm = self._reported_norm()
            self._check_applied(applied, step)
        loss, correct, count = sums.tolist()
        return StepResult(loss / count, correct / count, grad_norm, int(count), applied)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> EvalResult:
        """Mean loss over all ranks' batches. Ranks may hold different numbers of batches; all make equally many
        forward passes, because ZeRO-3 gathers weights in each. All-reduces over the world twice."""
        self.engine.eval()
        passes = torch.tensor(len(batches), device=self.device)
        distributed.all_reduce(passes, op=distributed.ReduceOp.MAX)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number in range(int(passes)):
            batch = batches[number] if number < len(batches) else _blank_batch()
            loss_sum, count, correct = self.engine(**self._to_device(batch))
            sums += torch.stack([loss_sum.double(), correct.double(), count.double()])
        distributed.all_reduce(sums)
        loss, correct, count = sums.tolist()
        if not count:
            return EvalResult(math.nan, math.nan, 0)
        return EvalResult(loss / count, correct / count, int(count))

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        words = f"{self.seed}/{step}/{self.rank}/{micro_batch}".encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1)

    def _check_loss(self, loss_sum: float, step: int) -> None:
        if not math.isfinite(loss_sum):
            raise DivergenceError(
                f"step {step + 1}: the loss is {loss_sum}; no weight was changed at this step. Lower optimizer.lr, "
                "lengthen the warm-up or use bf16, and start again: the run resumes from its last checkpoint"
            )

    def _check_gradient(self, step: int) -> float:
        """Global L2 norm of the averaged gradient under ZeRO-0 in fp32; one reduction was done by DeepSpeed."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
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


def _bad_gradient(step: int, norm: float) -> str:
    return (
        f"step {step + 1}: the gradient norm is {norm} while the loss is finite; no weight was changed at this step. "
        "Lower optimizer.lr or lengthen the warm-up, and start again: the run resumes from its last checkpoint"
    )


def _blank_batch() -> Batch:
    """One sequence without targets: takes part in collectives and adds nothing to any sum."""
    ones = torch.ones(1, 8, dtype=torch.int64)
    empty = torch.zeros(1, 1, dtype=torch.int64)
    return {"input_ids": ones, "attention_mask": ones, "masked_positions": empty, "masked_labels": empty}
