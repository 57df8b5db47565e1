"""Whether a run takes NVIDIA apex's LayerNorm: never by default where they are not measured to be faster."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.ops.apex_kernels import find_apex, time_share, use_layer_norm

ApexSwitch = Literal["auto", "on", "off"]

_WORTHWHILE = 0.95
"""auto takes apex when its LayerNorm needs at most this share of torch's time."""


def select_apex(
    model: nn.Module, switch: ApexSwitch, device: torch.device, *, agree: Callable[[float], float] = float
) -> str:
    """Give ``model``, which is to run on ``device``, apex's LayerNorm if ``switch`` means so there.

    What ends a block has kernels of its own and stays as it is.

    Args:
        agree: makes one measurement of those of all ranks, so that all decide alike.

    Returns:
        A line for the log.

    Raises:
        ConfigError: it is asked for and is not there, or this is no GPU.
    """
    apex = find_apex() if switch != "off" and device.type == "cuda" else None
    if switch == "on":
        if device.type != "cuda":
            raise ConfigError(f"training.apex=on needs a GPU, and this is a {device.type}; use auto")
        if apex is None:
            raise ConfigError(
                "training.apex=on: NVIDIA's apex with its compiled kernels is not installed (the package of that name "
                "on PyPI is another one); build it from github.com/NVIDIA/apex, or use auto"
            )
    reason = ""
    if switch == "auto" and apex is not None:
        share = agree(time_share(apex, device))
        reason = f", its LayerNorm takes {share:.2f} of torch's time"
        apex = apex if share <= _WORTHWHILE else None
    if apex is not None:
        use_layer_norm(model, apex)
    return f"apex {switch}: {'off' if apex is None else 'LayerNorm'}{reason}"
