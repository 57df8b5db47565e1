"""Keeps an update that is not finite from changing a weight, without a look at its numbers from the host."""

from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


class UpdateGate:
    """Tells torch's fused AdamW on the device whether to step, in the way of ``torch.amp.GradScaler``: where
    ``found_inf`` of the optimizer is 1, its kernel leaves weights, moments and step count as they are.

    DeepSpeed's optimizers refuse gradients that are not finite, but losses they never see. A bf16 gradient under ZeRO 1
    and 2 is judged here too, by the norm that DeepSpeed made of it: its own look at every parameter is left out
    (``engine/build.py``).
    """

    def __init__(self, optimizer: Any) -> None:
        """``optimizer``: the engine's, DeepSpeed's around torch's or torch's own."""
        self._outer = optimizer
        self._inner = getattr(optimizer, "optimizer", optimizer)
        self._judged: Tensor | None = None
        self.is_on_device = not isinstance(self._inner, DeepSpeedCPUAdam)
        """False: the optimizer runs on the host and asks nobody; look at the numbers before it steps."""
        if isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.check_grad_overflow and self.is_on_device:
            self._inner.register_step_pre_hook(self._judge_norm)

    def judge(self, *numbers: Tensor) -> None:
        """Let the next step of the optimizer change something only if all these scalars are finite."""
        self._judged = numbers[0] if len(numbers) == 1 else torch.stack(numbers).sum()
        self._inner.found_inf = _is_not_finite(self._judged)

    def _judge_norm(self, inner: Any, _args: Any, _kwargs: Any) -> None:
        norm = self._outer._global_grad_norm
        if self._judged is not None and isinstance(norm, Tensor):
            inner.found_inf = _is_not_finite(self._judged + norm)


def _is_not_finite(number: Tensor) -> Tensor:
    """fp32 scalar, 1 or 0."""
    return (number - number).ne(0).float()  # inf - inf is not a number, and equals nothing
