"""Activations that are cheaper to compute again than to keep."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def gelu_then(module: Callable[[Tensor], Tensor], inner: Tensor) -> Tensor:
    """``module(gelu(inner))`` that keeps ``inner`` only: the backward pass computes the gelu again.

    It works through the hooks of saved tensors, so that ``module`` may be any layer, a sharded one too.
    """
    activated = functional.gelu(inner)
    address, kept = activated.data_ptr(), inner.detach()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        is_activated = saved.data_ptr() == address and saved.numel() == kept.numel()
        return saved.shape if is_activated else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else functional.gelu(kept).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return module(activated)
