"""Which implementation of the ops a model runs, and what it keeps for backward: no effect on parameters or results."""

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.model.attention import DisentangledSelfAttention, FeedForward
from megadeberta.model.dropout import HiddenDropout
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops.attention.backends import AUTO, resolve
from megadeberta.ops.hidden_dropout import TORCH, TRITON
from megadeberta.ops.residual_norm import reason_not_to_run


def select_attention(model: nn.Module, backend: str, device: torch.device, *, rows: str | None = None) -> None:
    """Set the backend of every attention layer of ``model``, which is to run on ``device``.

    Args:
        rows: the backend of the mask decoder; the same as of the others when None.

    Raises:
        ConfigError: there is no such backend, or it does not run there.
    """
    decoders = [module for module in model.modules() if isinstance(module, EnhancedMaskDecoder)]
    for part, name in ((model, backend), *((decoder, rows or backend) for decoder in decoders)):
        reason = resolve(name, device.type).reason_not_to_run(device.type)
        if reason:
            raise ConfigError(f"training.attention={name}: {reason}; use auto")
        for module in part.modules():
            if isinstance(module, DisentangledSelfAttention):
                module.backend = name


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
