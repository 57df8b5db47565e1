"""NVIDIA apex's fused LayerNorm, where that package is built. The ``apex`` on PyPI is something else.

Shapes: D columns.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ROWS, _COLUMNS, _REPEATS = 32_768, 768, 20
"""What is timed: the hidden states of 64 sequences of 512 tokens in the base size."""


@dataclass(frozen=True)
class Apex:
    """What of it is used. layer_norm: of (input, weight, bias, normalized shape, eps)."""

    layer_norm: Callable[..., Tensor]


def find_apex() -> Apex | None:
    """NVIDIA's apex with its compiled kernels, or None."""
    try:
        # Without this extension apex's classes exist and fail, or fall back, when they are used.
        import fused_layer_norm_cuda  # noqa: F401
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine
    except ImportError:
        return None
    return Apex(fused_layer_norm_affine)


def time_share(apex: Apex, device: torch.device) -> float:
    """Time of apex's LayerNorm over that of torch's, forward and backward in bf16 on ``device``."""
    hidden = torch.randn(_ROWS, _COLUMNS, dtype=torch.bfloat16, device=device, requires_grad=True)
    weight, bias = (torch.ones(_COLUMNS, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(2))
    upstream = torch.randn_like(hidden)

    def seconds(norm: Callable[..., Tensor], *arguments: object) -> float:
        for number in range(_REPEATS + 3):
            if number == 3:
                _wait(device)
                started = time.perf_counter()
            torch.autograd.grad(norm(*arguments), (hidden, weight, bias), upstream)
        _wait(device)
        return time.perf_counter() - started

    shape = (_COLUMNS,)
    ours = seconds(torch.nn.functional.layer_norm, hidden, shape, weight, bias, 1e-7)
    return seconds(apex.layer_norm, hidden, weight, bias, shape, 1e-7) / ours


def use_layer_norm(model: nn.Module, apex: Apex) -> None:
    """Let every ``nn.LayerNorm`` of ``model`` run apex's kernel; parameters and their names stay."""

    class ApexLayerNorm(nn.LayerNorm):
        def forward(self, hidden: Tensor) -> Tensor:
            return apex.layer_norm(hidden, self.weight, self.bias, self.normalized_shape, self.eps)

    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = ApexLayerNorm


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
