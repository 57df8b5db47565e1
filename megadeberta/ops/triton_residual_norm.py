"""Triton kernels of LayerNorm(dropout(branch) + residual), as operators that torch.compile keeps whole.

The backward pass draws the dropout again. Gradients of weight and bias are summed in two stages in a fixed order: every
program adds up its own rows, then the programs' sums are added.

Shapes: R rows · D columns · BD columns of a tile, D padded to a power of two · P programs of the backward kernel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadeberta.ops.hidden_dropout import threshold
from megadeberta.ops.triton_hidden_dropout import kept, tile

BACKWARD_PROGRAMS = 4 * 132
"""Programs of the backward kernel, four for each multiprocessor of an H200; each holds sums for weight and bias."""


def triton_residual_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    keys: Tensor | None,
    site: int,
    probability: float,
) -> Tensor:
    """See :func:`megadeberta.ops.residual_norm.residual_layer_norm`; on a GPU, or under the interpreter."""
    dropped_below = 0 if keys is None else threshold(probability)
    rows = None if keys is None else keys.reshape(-1)
    flat = (branch.reshape(-1, branch.size(-1)), residual.reshape(-1, branch.size(-1)))
    normed, *_ = torch.ops.megadeberta.residual_norm_forward(*flat, weight, bias, rows, site, eps, dropped_below)
    return normed.view(branch.shape)


@triton.jit(do_not_specialize=["site"])
def forward_kernel(
    BRANCH, RESIDUAL, WEIGHT, BIAS, KEYS, NORMED, TOTAL, MEAN, SCALE,
    site, size, eps, below, keep_scale, DROPOUT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One row: its sum, mean, inverse deviation and result."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BD)
    inside = columns < size
    at = row * size + columns
    branch = tl.load(BRANCH + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        branch = tl.where(kept(tl.load(KEYS + row) ^ site, below, BD), branch * keep_scale, 0.0)
    total = branch + tl.load(RESIDUAL + at, mask=inside, other=0.0).to(tl.float32)
    # Rounded before the statistics, which then are those of what the backward pass reads.
    total = total.to(TOTAL.dtype.element_ty).to(tl.float32)
    tl.store(TOTAL + at, total.to(TOTAL.dtype.element_ty), mask=inside)
    mean = tl.sum(total, 0) / size
    centered = tl.where(inside, total - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / size + eps)
    weight = tl.load(WEIGHT + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(NORMED + at, (centered * scale * weight + bias).to(NORMED.dtype.element_ty), mask=inside)
    tl.store(MEAN + row, mean)
    tl.store(SCALE + row, scale)


@triton.jit(do_not_specialize=["site"])
def backward_kernel(
    GRAD, TOTAL, MEAN, SCALE, WEIGHT, KEYS, GRAD_BRANCH, GRAD_RESIDUAL, GRAD_WEIGHT, GRAD_BIAS,
    num_rows, rows_each, site, size, below, keep_scale, DROPOUT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of some rows, and their share of those of weight and bias."""
    program = tl.program_id(0)
    columns = tl.arange(0, BD)
    inside = columns < size
    weight = tl.load(WEIGHT + columns, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BD], tl.float32)
    grad_bias = tl.zeros([BD], tl.float32)
    for number in range(program * rows_each, tl.minimum((program + 1) * rows_each, num_rows)):
        row = tl.cast(number, tl.int64)
        at = row * size + columns
        grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.load(TOTAL + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(SCALE + row)
        normed = tl.where(inside, (total - tl.load(MEAN + row)) * scale, 0.0)
        grad_weight += grad * normed
        grad_bias += grad
        weighted = grad * weight
        along, mean = tl.sum(weighted * normed, 0) / size, tl.sum(weighted, 0) / size
        grad_total = (weighted - normed * along - mean) * scale
        tl.store(GRAD_RESIDUAL + at, grad_total.to(GRAD_RESIDUAL.dtype.element_ty), mask=inside)
        if DROPOUT:
            grad_branch = tl.where(kept(tl.load(KEYS + row) ^ site, below, BD), grad_total * keep_scale, 0.0)
            tl.store(GRAD_BRANCH + at, grad_branch.to(GRAD_BRANCH.dtype.element_ty), mask=inside)
    share = program.to(tl.int64) * size + columns
    tl.store(GRAD_WEIGHT + share, grad_weight, mask=inside)
    tl.store(GRAD_BIAS + share, grad_bias, mask=inside)


@torch.library.custom_op("megadeberta::residual_norm_forward", mutates_args=())
def _forward(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None,
    site: int, eps: float, below: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Result and sum ``[R, D]``, mean and inverse deviation ``[R]``."""
    rows, size = branch.shape
    branch, residual = branch.contiguous(), residual.contiguous()
    normed, total = torch.empty_like(branch), torch.empty_like(branch)
    mean, scale = (branch.new_empty(rows, dtype=torch.float32) for _ in range(2))
    forward_kernel[(rows,)](
        branch, residual, weight, bias, branch if keys is None else keys.contiguous(), normed, total, mean, scale,
        site, size, eps, below, 256.0 / (256 - below), DROPOUT=keys is not None, **tile(size),
    )  # fmt: skip
    return normed, total, mean, scale


@_forward.register_fake
def _(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None,
    site: int, eps: float, below: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = branch.new_empty(branch.size(0), dtype=torch.float32)
    return torch.empty_like(branch), torch.empty_like(branch), rows, torch.empty_like(rows)


@torch.library.custom_op("megadeberta::residual_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, keys: Tensor | None, site: int, below: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of branch (empty without dropout: that of residual) and residual, and of weight and bias ``[2, D]``."""
    rows, size = total.shape
    programs = min(rows, BACKWARD_PROGRAMS)
    grad_residual = torch.empty_like(total)
    grad_branch = total.new_empty(0) if keys is None else torch.empty_like(total)
    parts = total.new_empty(2, programs, size, dtype=torch.float32)
    backward_kernel[(programs,)](
        grad.contiguous(), total, mean, scale, weight, total if keys is None else keys.contiguous(),
        total if keys is None else grad_branch, grad_residual, *parts,
        rows, triton.cdiv(rows, programs), site, size, below, 256.0 / (256 - below),
        DROPOUT=keys is not None, **tile(size),
    )  # fmt: skip
    return grad_branch, grad_residual, parts.sum(1).to(weight.dtype)


@_backward.register_fake
def _(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, keys: Tensor | None, site: int, below: int
) -> tuple[Tensor, Tensor, Tensor]:
    grad_branch = total.new_empty(0) if keys is None else torch.empty_like(total)
    return grad_branch, torch.empty_like(total), weight.new_empty(2, weight.size(0))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # no zeros in place of the gradients that sum and statistics never get
    _, _, weight, _, keys, ctx.site, _, ctx.below = inputs
    ctx.save_for_backward(*output[1:], weight, keys)


def _gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    *kept, keys = ctx.saved_tensors
    found = torch.ops.megadeberta.residual_norm_backward(grad, *kept, keys, ctx.site, ctx.below)
    grad_branch, grad_residual, grads = found
    return (grad_residual if keys is None else grad_branch, grad_residual, *grads.unbind(0), *(None,) * 4)


torch.library.register_autograd("megadeberta::residual_norm_forward", _gradients, setup_context=_keep)
