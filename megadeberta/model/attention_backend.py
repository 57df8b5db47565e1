"""Which implementation of the ops a model runs, and what it keeps for backward: no effect on parameters or results."""

import os

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.model.attention import DisentangledSelfAttention, FeedForward
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops.disentangled_attention import Backend, has_triton, resolve_backend


def select_attention(model: nn.Module, backend: Backend, device: torch.device) -> None:
    """Set the backend of every attention layer and of what ends a block of ``model``, which is to run on ``device``.

    Raises:
        ConfigError: that backend does not run there.
    """
    _check_runs(backend, device)
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention | ResidualNorm):
            module.backend = backend


def select_recompute(model: nn.Module, selective: bool) -> None:
    """Let every layer of ``model`` keep its queries, keys and values and the feed-forward's first product for backward,
    or make them again there."""
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention | FeedForward):
            module.recompute = selective


def describe_attention(backend: Backend, device: torch.device) -> str:
    """One line for the log: what was asked for and what it means on this device."""
    return f"attention {backend}: {resolve_backend(backend, device)} on {device.type}"


def _check_runs(backend: Backend, device: torch.device) -> None:
    on_cpu = device.type == "cpu"
    if backend in ("cpu", "cpu-lean") and not on_cpu:
        raise ConfigError(f"training.attention={backend} runs on a CPU only, and this is {device.type}; use auto")
    if backend == "triton" and not has_triton():
        raise ConfigError(
            "training.attention=triton: Triton is not installed; pip install 'megadeberta[gpu]', or use auto"
        )
    if backend == "triton" and on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            "training.attention=triton needs a GPU, and this is a CPU; use auto, or set TRITON_INTERPRET=1 to test "
            "the kernels slowly"
        )
