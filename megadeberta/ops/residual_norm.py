"""LayerNorm(dropout(branch) + residual) in one: only the sum is kept, and the backward pass draws the dropout again.

Shapes: D columns · ... rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.ops.attention.backends import AUTO, reason_without_triton
from megadeberta.ops.hidden_dropout import hidden_dropout, kept_as, kept_scale, threshold


def residual_layer_norm(
    branch: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    keys: Tensor | None = None,
    site: int = 0,
    probability: float = 0.0,
    implementation: str = AUTO,
) -> Tensor:
    """``LayerNorm(hidden_dropout(branch) + residual)``; every implementation drops the same elements.

    Args:
        branch, residual: ``[..., D]``.
        weight, bias: ``[D]``.
        keys, site: int64 ``[...]``, random words of the rows, see ``hidden_dropout``; None drops nothing.
        implementation: a name of ``IMPLEMENTATIONS``, or "auto": "cpu" on a CPU and "torch" elsewhere.

    Returns:
        ``[..., D]``.
    """
    if implementation == AUTO:
        implementation = "cpu" if branch.device.type == "cpu" else "torch"
    if keys is None or threshold(probability) == 0:
        keys, probability = None, 0.0
    run = IMPLEMENTATIONS[implementation]
    return run(branch, residual, weight, bias, eps=eps, keys=keys, site=site, probability=probability)


def reason_not_to_run(implementation: str, device_type: str) -> str:
    """Why an implementation does not run on a device of that type here, for the user; empty if it does."""
    if implementation == "cpu" and device_type != "cpu":
        return f"it runs on a CPU only, and this is {device_type}"
    return reason_without_triton(device_type) if implementation == "triton" else ""


def _torch(
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
    dropped = branch if keys is None else hidden_dropout(branch, keys, site=site, probability=probability)
    return functional.layer_norm(dropped + residual, weight.shape, weight, bias, eps)


def _cpu(
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
    if keys is None:  # without a mask there is nothing to join
        return _torch(branch, residual, weight, bias, eps=eps, keys=None, site=0, probability=probability)
    return _CpuResidualNorm.apply(branch, residual, weight, bias, eps, keys, site, probability)


def _triton(*inputs: Tensor, **options: Any) -> Tensor:
    # Triton is an optional dependency, and importing it takes a second.
    from megadeberta.ops.triton_residual_norm import triton_residual_norm

    return triton_residual_norm(*inputs, **options)


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"torch": _torch, "cpu": _cpu, "triton": _triton}
"""By the name that ``training.residual_norm`` and a backend's ``residual_norm`` use."""


class _CpuResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        keys: Tensor,
        site: int,
        probability: float,
    ) -> Tensor:
        kept = kept_as(keys, branch, site=site, probability=probability)
        total = torch.addcmul(residual, branch, kept, value=kept_scale(probability))
        normed, mean, scale = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.site, ctx.probability = site, probability
        ctx.save_for_backward(total, mean, scale, weight, bias, keys)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, mean, scale, weight, bias, keys = ctx.saved_tensors
        grad_total, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), total, weight.shape, mean, scale, weight, bias, [True, True, True]
        )
        kept = kept_as(keys, grad_total, site=ctx.site, probability=ctx.probability)
        grad_branch = kept.mul_(grad_total).mul_(kept_scale(ctx.probability))
        return grad_branch, grad_total, grad_weight, grad_bias, None, None, None, None
