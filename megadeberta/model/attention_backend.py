"""Which implementation of the ops a model runs, and what it keeps for backward: no effect on parameters or results."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.model.attention import DisentangledSelfAttention, FeedForward
from megadeberta.model.kernel_trial import Trial
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops.attention.interface import Backend, has_triton, resolve_backend


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


@dataclass(frozen=True)
class AttentionChoice:
    """The implementation of a run, and one line for the log: what was asked for, what it means here and why."""

    backend: Backend
    line: str


def choose_attention(
    switch: Backend, device: torch.device, trial: Callable[[], Trial], *, agree: Callable[[float], float] = float
) -> AttentionChoice:
    """What ``training.attention`` means on ``device``.

    On a GPU, auto takes the kernels if a trial finds them right there and faster than the reference.

    Args:
        trial: of ``try_kernels``; runs only where it decides something.
        agree: makes one share of time of those of all ranks, the largest, so that all decide alike.
    """
    if switch != "auto" or device.type == "cpu":
        backend = resolve_backend(switch, device)
        return AttentionChoice(backend, f"attention {switch}: {backend} on {device.type}")
    if not has_triton():
        return AttentionChoice("reference", f"attention auto: reference on {device.type}, as Triton is not installed")
    outcome = trial()
    share = agree(outcome.share)
    backend = "triton" if share < 1 else "reference"
    reason = f"of the kernels, {outcome.finding}" if outcome.finding else "on another rank the kernels are not right"
    if share < math.inf:
        reason = f"the kernels are right here and take {share:.2f} of the reference's time"
    return AttentionChoice(backend, f"attention auto: {backend} on {device.type}; {reason}")


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
