"""DeepSpeed's optimizers with many gradients at a time.

Where gradients are fp32 they are kept in one flat buffer for a group of parameters, and yet DeepSpeed 0.19.8 goes over
them parameter by parameter: its bf16 optimizer (runtime/bf16_optimizer.py) adds, measures and clips with four kernels
for each, 816 of a base model's step, and the ZeRO optimizer (runtime/zero/stage_1_and_2.py) measures with two.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, distributed

_JOINED = 2**25
"""Elements that are copied side by side before they are added: 64 MiB of bf16, and enough to fill a GPU."""
_PIECE = 2**26
"""Elements of a buffer whose norm is taken at a time."""


def work_on_whole_groups(optimizer: Any) -> None:
    """Replace what works parameter by parameter, if anything does. The numbers are the same, but for the order of sums
    in the norm."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.scaled_global_norm = functools.partial(_norm, optimizer, optimizer.scaled_global_norm)
    if not isinstance(optimizer, BF16_Optimizer):
        return
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


def _norm(optimizer: DeepSpeedZeroOptimizer, one_by_one: Callable[..., Tensor], norm_type: int = 2) -> Tensor:
    """The norm of the reduced gradients, infinite where they are not finite. One all-reduce over the data-parallel
    ranks in place of one for each group."""
    groups = range(len(optimizer.bit16_groups))
    flats: list[Any] = [getattr(optimizer.averaged_gradients.get(group), "flat_partition", None) for group in groups]
    # Without mpu every parameter counts once, and what is not fp32, or on the host, is in no flat buffer.
    if optimizer.mpu is not None or optimizer.cpu_offload or any(flat is None for flat in flats):
        return one_by_one(norm_type)
    pieces = [piece for flat in flats for piece in flat.split(_PIECE)]
    squares = torch.stack([torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]).square().sum()
    distributed.all_reduce(squares, group=optimizer.dp_process_group)
    norm = squares.sqrt().float()
    return torch.where(norm.isfinite(), norm, torch.inf)
