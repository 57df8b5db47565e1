"""Which implementation reads the logits over the vocabulary in a run, and a trial of the kernels before it.

Shapes: R rows · V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megadeberta.errors import ConfigError
from megadeberta.model.mlm_head import MlmHead
from megadeberta.model.sampling import Sample
from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.gumbel_max import best_ids
from megadeberta.ops.logits import TORCH, TRITON, reason_not_to_run, resolve
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.split_mix import hash_words

_ROWS, _WIDTH, _VOCABULARY = 16, 16, 5003
"""Of the trial: more ids than a block, and not a multiple of one."""
_TIMES_WORSE, _ROUNDING = 4.0, 1e-4
"""How much further than torch in that precision the kernels may be from torch in fp64."""


def select_logits(
    model: nn.Module,
    setting: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    agree: Callable[[float], float] = float,
) -> str:
    """Set what computes the loss over the vocabulary and draws from it in ``model``, which is to run on ``device``.

    auto takes the kernels on a GPU where a trial finds them right, else plain torch.

    Args:
        agree: makes one number of those of all ranks, the largest, so that all decide alike.

    Returns:
        A line for the log.

    Raises:
        ConfigError: what the recipe names does not run there.
    """
    name, reason = resolve(setting, device.type), ""
    missing = reason_not_to_run(name, device.type)
    if missing:
        raise ConfigError(f"training.logits={name}: {missing}; use auto")
    if setting == AUTO and device.type == "cuda":
        finding = reason_not_to_run(TRITON, device.type) or _try_kernels(device, dtype)
        if agree(1.0 if finding else 0.0):
            reason = f"; {TRITON}: {finding or 'not right on another rank'}"
        else:
            name = TRITON
    for module in model.modules():
        if isinstance(module, MlmHead | Sample):
            module.implementation = name
    return f"logits {setting}: {name} on {device.type}{reason}"


def _try_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the kernels on ``device`` in ``dtype``; empty if nothing is. Takes seconds, most of them
    compiling."""
    try:
        leaves, labels = _inputs(device)
        truth = _loss_and_gradients([leaf.double() for leaf in leaves], labels, TORCH)
        plain, found = (
            _loss_and_gradients([leaf.to(dtype) for leaf in leaves], labels, name) for name in (TORCH, TRITON)
        )
        for name, right, rounded, ours in zip(("loss", "states", "table", "bias"), truth, plain, found, strict=True):
            allowed = _TIMES_WORSE * _distance(rounded, right) + _ROUNDING * float(right.norm())
            if not _distance(ours, right) <= allowed:
                return f"the gradient of the {name} is wrong" if name != "loss" else "the loss is wrong"
        logits, keys = (leaves[0] @ leaves[1].mT).to(dtype), hash_words(torch.arange(_ROWS, device=device), 0)
        drawn, defined = (best_ids(logits, keys, temperature=0.7, implementation=name)[1] for name in (TRITON, TORCH))
        if not torch.equal(drawn, defined):
            return "the draws are wrong"
    except Exception as error:  # what a compiler or a driver raises has no common class
        return f"failed with {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return ""


def _inputs(device: torch.device) -> tuple[list[Tensor], Tensor]:
    """States, table and bias with random values that are the same every time, and labels with empty slots."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((_ROWS, _WIDTH), (_VOCABULARY, _WIDTH), (_VOCABULARY,))
    leaves = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return leaves, torch.arange(_ROWS, device=device) * 331 % _VOCABULARY


def _loss_and_gradients(leaves: list[Tensor], labels: Tensor, implementation: str) -> tuple[Tensor, ...]:
    hidden, weight, bias = leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = masked_cross_entropy(hidden, weight, bias, labels, implementation=implementation).loss_sum
    return loss.detach(), *torch.autograd.grad(loss / _ROWS, leaves)


def _distance(found: Tensor, right: Tensor) -> float:
    distance = float((found.double() - right).norm())
    return distance if math.isfinite(distance) else math.inf
