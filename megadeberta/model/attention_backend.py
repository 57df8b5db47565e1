"""Which implementation of the ops a model runs, and what it keeps for backward: no effect on parameters or results."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.model.attention import DisentangledSelfAttention, FeedForward
from megadeberta.model.dropout import HiddenDropout
from megadeberta.model.kernel_trial import Trial
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops.attention.backends import AUTO, backends_to_try, resolve, sure_backend
from megadeberta.ops.hidden_dropout import TORCH, TRITON
from megadeberta.ops.residual_norm import reason_not_to_run


def select_attention(model: nn.Module, backend: str, device: torch.device) -> None:
    """Set the backend of every attention layer of ``model``, which is to run on ``device``.

    Raises:
        ConfigError: there is no such backend, or it does not run there.
    """
    reason = resolve(backend, device.type).reason_not_to_run(device.type)
    if reason:
        raise ConfigError(f"training.attention={backend}: {reason}; use auto")
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention):
            module.backend = backend


def select_residual_norm(model: nn.Module, setting: str, device: torch.device, *, attention: str) -> str:
    """Set what ends every block of ``model``, which is to run on ``device``, and the dropout that goes with it.

    Args:
        setting: of ``training.residual_norm``; "auto" takes what goes with the backend ``attention``.

    Returns:
        A line for the log.

    Raises:
        ConfigError: it does not run there.
    """
    name = resolve(attention, device.type).residual_norm if setting == AUTO else setting
    reason = reason_not_to_run(name, device.type)
    if reason:
        asked = f"{setting}, which is {name} beside attention {attention}" if setting == AUTO else name
        raise ConfigError(f"training.residual_norm={asked}: {reason}; use torch")
    norms = [module for module in model.modules() if isinstance(module, ResidualNorm)]
    for dropout in (module for module in model.modules() if isinstance(module, HiddenDropout)):
        dropout.implementation = TRITON if name == TRITON else TORCH
    for norm in norms:
        if setting != AUTO or norm.follows_attention:
            norm.implementation = name
    taken = sorted({norm.implementation for norm in norms})
    return f"residual norm {setting}: {' and '.join(taken)}"


def select_recompute(model: nn.Module, selective: bool) -> None:
    """Let every layer of ``model`` keep its queries, keys and values and the feed-forward's first product for backward,
    or recompute them there."""
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention | FeedForward):
            module.recompute = selective


@dataclass(frozen=True)
class AttentionChoice:
    """The backend of a run, and one line for the log: what was asked for, what it means here and why."""

    backend: str
    line: str


def choose_attention(
    setting: str,
    device: torch.device,
    trial: Callable[[str, str], Trial],
    *,
    agree: Callable[[float], float] = float,
) -> AttentionChoice:
    """What ``training.attention`` means on ``device``.

    auto takes a backend that needs a trial, such as the kernels on a GPU, where the trial finds it right and faster
    than what auto takes without one.

    Args:
        trial: of ``try_backend``, for a candidate and its rival; runs only where it decides something.
        agree: makes one time ratio of those of all ranks, the largest, so that all decide alike.

    Raises:
        ConfigError: there is no such backend.
    """
    best, least, reasons = resolve(setting, device.type).name, 1.0, []
    rival = sure_backend(device.type).name
    for candidate in backends_to_try(device.type) if setting == AUTO else []:
        missing = candidate.reason_not_to_run(device.type)
        # A rank where it does not run takes part in the agreement: another rank may have tried it.
        outcome = Trial(math.inf, missing) if missing else trial(candidate.name, rival)
        ratio = agree(outcome.ratio)
        reasons.append(_reason(candidate.name, rival, outcome, ratio))
        if ratio < least:
            best, least = candidate.name, ratio
    return AttentionChoice(best, "; ".join([f"attention {setting}: {best} on {device.type}", *reasons]))


def _reason(candidate: str, rival: str, outcome: Trial, ratio: float) -> str:
    if outcome.finding:
        return f"{candidate}: {outcome.finding}"
    if ratio == math.inf:
        return f"{candidate}: not right on another rank"
    return f"{candidate} is right here and takes {ratio:.2f} of the time of {rival}"
