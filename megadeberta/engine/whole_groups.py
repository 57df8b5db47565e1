"""DeepSpeed's bf16 optimizer with many gradients at a time.

It keeps the fp32 gradients of a group of parameters in one flat buffer, and yet adds to it, takes its norm and clips it
parameter by parameter: four kernels for each, 816 of a base model's step (DeepSpeed 0.19.8, runtime/bf16_optimizer.py).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

_JOINED = 2**25
"""Elements that are copied side by side before they are added: 64 MiB of bf16, and enough to fill a GPU."""
_PIECE = 2**26
"""Elements of a buffer whose norm is taken at a time."""


def work_on_whole_groups(optimizer: BF16_Optimizer) -> None:
    """Replace what works parameter by parameter; the numbers are the same but for the order of sums in the norm."""
    optimizer.update_hp_grads = functools.partial(_add_gradients, optimizer)
    optimizer.get_grads_for_norm = functools.partial(_gradients, optimizer, optimizer.get_grads_for_norm)


@torch.no_grad()
def _add_gradients(optimizer: BF16_Optimizer, clear_lp_grads: bool = False) -> None:
    """Add the gradients of one backward pass to the fp32 ones, and let go of them."""
    if optimizer.immediate_grad_update:
        return
    for number, group in enumerate(optimizer.bf16_groups):
        flat = optimizer.fp32_groups_gradients_flat[number]
        for start, gradients in _neighbours([parameter.grad for parameter in group], [p.numel() for p in group]):
            joined = torch.cat([g.reshape(-1) for g in gradients]) if len(gradients) > 1 else gradients[0].reshape(-1)
            flat.narrow(0, start, joined.numel()).add_(joined)
        for place, parameter in enumerate(group):
            if parameter.grad is not None:
                parameter._hp_grad = optimizer.fp32_groups_gradients[number][place]
                optimizer.fp32_groups_has_gradients[number][place] = True
                parameter.grad = None


def _neighbours(gradients: list[Tensor | None], sizes: list[int]) -> Iterator[tuple[int, list[Tensor]]]:
    """Gradients that follow one another in the flat buffer without a gap, few large or many small ones, with the place
    of the first."""
    first, run, length, place = 0, list[Tensor](), 0, 0
    for gradient, size in zip(gradients, sizes, strict=True):
        if run and (gradient is None or length + size > _JOINED):
            yield first, run
            run, length = [], 0
        if gradient is not None:
            first = first if run else place
            run, length = [*run, gradient], length + size
        place += size
    if run:
        yield first, run


def _gradients(optimizer: BF16_Optimizer, one_by_one: Callable[..., Any], for_clipping: bool = False) -> Any:
    """What norm and clipping go over, as ``BF16_Optimizer.get_grads_for_norm``: pieces of the flat buffers, in which
    padding and absent gradients are zeros."""
    if not for_clipping and optimizer.mpu is not None:
        return one_by_one()  # some parameters are counted by another rank
    pieces = [piece for flat in optimizer.fp32_groups_gradients_flat for piece in flat.split(_PIECE)]
    return pieces if for_clipping else (pieces, {})
