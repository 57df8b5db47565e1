"""Encoder layers as programs of torch.compile: one for all layers of a kind, forward and backward.

What is compiled is ``EncoderLayer.run``, which takes tensors alone. Names of parameters and modules stay. Parameters
and sites are inputs of a program, so all layers of a shape share one; a batch with padding has another than one
without. Validation, the convolution and the mask decoder, whose number of rows differs from batch to batch, run as
they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.model.dropout import AttentionDropout, HiddenDropout
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.mask_decoder import EnhancedMaskDecoder

CompileSwitch = Literal["none", "layers"]

BACKEND = "inductor"
"""Of torch.compile."""


def select_compile(
    model: nn.Module, switch: CompileSwitch, device: torch.device, *, agree: Callable[[float], float] = float
) -> str | None:
    """Let the encoder layers of ``model``, which is to run on ``device``, train as ``switch`` says.

    After the sites are set. Before it, a program of a few lines is compiled and run, which takes seconds: what torch
    lacks here is found now and not in the first step.

    Args:
        agree: makes one number of those of all ranks, the largest, so that all raise alike.

    Returns:
        A line for the log.

    Raises:
        ConfigError: torch.compile does not work here, or on another rank.
    """
    if switch == "none":
        return None
    reason = _reason_not_to_compile(device)
    if agree(1.0 if reason else 0.0):
        needs = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise ConfigError(
            f"training.compile=layers: torch.compile {reason or 'does not work on another rank'}; it needs {needs} "
            "(`apt install g++`, or name one in CXX) and a writable TORCHINDUCTOR_CACHE_DIR; or use "
            "training.compile=none"
        )
    layers = _layers(model)
    run = torch.compile(EncoderLayer.run, dynamic=False, backend=BACKEND)  # one function, so layers share programs
    for layer in layers:
        layer.train_with(partial(run, layer))
        for module in layer.modules():
            if isinstance(module, HiddenDropout | AttentionDropout):
                module.site_word = torch.tensor(module.site, device=device)
    return f"compile layers: {len(layers)} encoder layers, in the first step"


def _layers(model: nn.Module) -> list[EncoderLayer]:
    in_decoders = {id(module.layer) for module in model.modules() if isinstance(module, EnhancedMaskDecoder)}
    return [module for module in model.modules() if isinstance(module, EncoderLayer) and id(module) not in in_decoders]


def _reason_not_to_compile(device: torch.device) -> str:
    """Why torch.compile does not work for ``device``; empty if it does."""
    numbers = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(_few_lines, dynamic=False, backend=BACKEND)(numbers).backward()
    except Exception as error:  # what a compiler or a driver raises has no common class
        inner = getattr(error, "inner_exception", error)  # torch wraps what a backend raises
        lines = str(inner).splitlines() or [""]
        return f"failed with {type(inner).__name__}: {lines[0][:200]}"
    return ""


def _few_lines(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers.sin() * 2).sum()
