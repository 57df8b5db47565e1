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
from megadeberta.ops.split_mix import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

BACKWARD_PROGRAMS = 4 * 132
"""Programs of the backward kernel, four for each multiprocessor of an H200; each holds sums for weight and bias."""

_GOLDEN, _FIRST, _SECOND = tl.constexpr(GOLDEN), tl.constexpr(FIRST_FACTOR), tl.constexpr(SECOND_FACTOR)


def triton_residual_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    keys: Tensor | None,
    probability: float,
) -> Tensor:
    """See :func:`megadeberta.ops.residual_norm.residual_layer_norm`; on a GPU, or under the interpreter."""
    dropped_below = 0 if keys is None else threshold(probability)
    rows = None if keys is None else keys.reshape(-1)
    flat = (branch.reshape(-1, branch.size(-1)), residual.reshape(-1, branch.size(-1)))
    normed, *_ = torch.ops.megadeberta.residual_norm_forward(*flat, weight, bias, rows, eps, dropped_below)
    return normed.view(branch.shape)


@triton.jit
def _kept(KEYS, row, below, BD: tl.constexpr):
    """Which columns of one row survive, ``[BD]``: bit for bit ``hidden_dropout.kept_columns``."""
    groups = tl.arange(0, BD // 8).to(tl.int64)
    words = tl.load(KEYS + row) + (groups + 1) * _GOLDEN
    words = (words ^ ((words >> 30) & 0x3FFFFFFFF)) * _FIRST
    words = (words ^ ((words >> 27) & 0x1FFFFFFFFF)) * _SECOND
    words = words ^ ((words >> 31) & 0x1FFFFFFFF)
    low, high = (words & 0xFFFFFFFF).to(tl.int32), (words >> 32).to(tl.int32)
    # Byte k of a word, k = 4 a + 2 b + c: a by the first join, b by the second, c by the third.
    even = tl.join(tl.join(low & 255, high & 255), tl.join((low >> 16) & 255, (high >> 16) & 255))
    odd = tl.join(tl.join((low >> 8) & 255, (high >> 8) & 255), tl.join((low >> 24) & 255, (high >> 24) & 255))
    return tl.reshape(tl.join(even, odd), [BD]) >= below


@triton.jit
def forward_kernel(
    BRANCH, RESIDUAL, WEIGHT, BIAS, KEYS, NORMED, TOTAL, MEAN, SCALE,
    size, eps, below, keep_scale, DROPOUT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One row: its sum, mean, inverse deviation and result."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BD)
    inside = columns < size
    at = row * size + columns
    branch = tl.load(BRANCH + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        branch = tl.where(_kept(KEYS, row, below, BD), branch * keep_scale, 0.0)
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


@triton.jit
def backward_kernel(
    GRAD, TOTAL, MEAN, SCALE, WEIGHT, KEYS, GRAD_BRANCH, GRAD_RESIDUAL, GRAD_WEIGHT, GRAD_BIAS,
    num_rows, rows_each, size, below, keep_scale, DROPOUT: tl.constexpr, BD: tl.constexpr,
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
            grad_branch = tl.where(_kept(KEYS, row, below, BD), grad_total * keep_scale, 0.0)
            tl.store(GRAD_BRANCH + at, grad_branch.to(GRAD_BRANCH.dtype.element_ty), mask=inside)
    share = program.to(tl.int64) * size + columns
    tl.store(GRAD_WEIGHT + share, grad_weight, mask=inside)
    tl.store(GRAD_BIAS + share, grad_bias, mask=inside)


@torch.library.custom_op("megadeberta::residual_norm_forward", mutates_args=())
def _forward(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None, eps: float, below: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result and sum ``[R, D]``, mean and inverse deviation ``[R]``."""
    rows, size = branch.shape
    branch, residual = branch.contiguous(), residual.contiguous()
    normed, total = torch.empty_like(branch), torch.empty_like(branch)
    mean, scale = (branch.new_empty(rows, dtype=torch.float32) for _ in range(2))
    forward_kernel[(rows,)](
        branch, residual, weight, bias, branch if keys is None else keys.contiguous(), normed, total, mean, scale,
        size, eps, below, 256.0 / (256 - below), DROPOUT=keys is not None, **tile(size),
    )  # fmt: skip
    return normed, total, mean, scale


@_forward.register_fake
def _(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None, eps: float, below: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = branch.new_empty(branch.size(0), dtype=torch.float32)
    return torch.empty_like(branch), torch.empty_like(branch), rows, torch.empty_like(rows)


@torch.library.custom_op("megadeberta::residual_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, keys: Tensor | None, below: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of branch (empty without dropout: that of residual), residual, weight and bias."""
    rows, size = total.shape
    programs = min(rows, BACKWARD_PROGRAMS)
    grad_residual = torch.empty_like(total)
    grad_branch = total.new_empty(0) if keys is None else torch.empty_like(total)
    parts = [total.new_empty(programs, size, dtype=torch.float32) for _ in range(2)]
    backward_kernel[(programs,)](
        grad.contiguous(), total, mean, scale, weight, total if keys is None else keys.contiguous(),
        total if keys is None else grad_branch, grad_residual, *parts,
        rows, triton.cdiv(rows, programs), size, below, 256.0 / (256 - below), DROPOUT=keys is not None, **tile(size),
    )  # fmt: skip
    grad_weight, grad_bias = (part.sum(0).to(weight.dtype) for part in parts)
    return grad_branch, grad_residual, grad_weight, grad_bias


@_backward.register_fake
def _(
    grad: Tensor, total: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, keys: Tensor | None, below: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_branch = total.new_empty(0) if keys is None else torch.empty_like(total)
    return grad_branch, torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, keys, _, ctx.below = inputs
    ctx.save_for_backward(*output[1:], weight, keys)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *kept, keys = ctx.saved_tensors
    grad_branch, grad_residual, *grads = torch.ops.megadeberta.residual_norm_backward(grad, *kept, keys, ctx.below)
    return (grad_residual if keys is None else grad_branch, grad_residual, *grads, None, None, None)


torch.library.register_autograd("megadeberta::residual_norm_forward", _gradients, setup_context=_keep)


def tile(size: int) -> dict[str, int]:
    """Launch options for rows of ``size`` columns."""
    padded = triton.next_power_of_2(max(size, 16))
    return {"BD": padded, "num_warps": 4 if padded <= 1024 else 8}
