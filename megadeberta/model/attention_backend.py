"""Which implementation of the attention op a model runs: one switch, no effect on parameters or results."""

import torch
from torch import nn

from megadeberta.model.attention import DisentangledSelfAttention
from megadeberta.ops.disentangled_attention import Backend, resolve_backend


def select_attention(model: nn.Module, backend: Backend) -> None:
    """Set the backend of every attention layer of ``model``."""
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention):
            module.backend = backend


def describe_attention(backend: Backend, device: torch.device) -> str:
    """One line for the log: what was asked for and what it means on this device."""
    return f"attention {backend}: {resolve_backend(backend, device)} on {device.type}"
