"""Whether an attention backend is right and fast on a device: one encoder layer by it and by others, before a run.

Shapes: B batch · L length · D hidden size.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import Draws, set_sites
from megadeberta.model.layer import EncoderLayer
from megadeberta.ops.attention.backends import REFERENCE
from megadeberta.ops.attention.relative_position import rows_by_distance

_BATCH, _LONGEST, _REPEATS = 2, 1024, 5
_STD = 0.05
"""Of all random values: scores are neither flat nor one-hot."""
_TIMES_WORSE = 4.0
"""How much further than the reference in that precision a backend may be from the reference in fp32."""
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Trial:
    """What a trial of a backend found.

    ratio: its time over its rival's, forward and backward; infinite if it is not right or fails. finding: what was
    wrong, for the log; empty if nothing was.
    """

    ratio: float
    finding: str = ""


def try_backend(
    config: ModelConfig,
    select: Callable[[nn.Module, str], None],
    candidate: str,
    rival: str,
    *,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Trial:
    """Compare a layer of the model's shape, dropout included, by ``candidate`` with the reference, and time it against
    ``rival``. Takes seconds, most of them compiling.

    Args:
        select: sets a module's attention backend, and what goes with it.
    """
    try:
        layer, carry = _layer(config, min(length, _LONGEST), device)
        select(layer, REFERENCE)
        truth = _pass(layer, carry, torch.float32)()
        results, seconds = {}, {}
        for name in dict.fromkeys((REFERENCE, rival, candidate)):
            select(layer, name)
            run = _pass(layer, carry, dtype)
            results[name] = run()
            started = time.perf_counter()
            for _ in range(_REPEATS):
                run()
            seconds[name] = time.perf_counter() - started
    except Exception as error:  # what a compiler or a driver raises has no common class
        return Trial(math.inf, f"failed with {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    for name, right in truth.items():
        allowed = _TIMES_WORSE * _distance(results[REFERENCE][name], right) + _ROUNDING * float(right.norm())
        found = _distance(results[candidate][name], right)
        if not found <= allowed:
            return Trial(math.inf, f"{name} is {found:.2g} away from the reference; rounding is {allowed:.2g}")
    return Trial(seconds[candidate] / seconds[rival])


def _layer(config: ModelConfig, length: int, device: torch.device) -> tuple[EncoderLayer, Carry]:
    """In fp32, with random values that are the same every time."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (_STD * torch.randn(shape, generator=generator)).to(device)

    layer = EncoderLayer(config).to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(draw(*parameter.shape))
    set_sites(layer.named_modules(), seed=0)
    relative = None
    if config.relative_attention:
        rows = rows_by_distance(length, config.position_buckets, config.relative_span)
        rows = rows - rows[0]
        relative = RelativePositions(draw(int(rows[-1]) + 1, config.hidden_size), rows.to(device))
    real = torch.arange(length) < torch.tensor([[length], [length - length // 4]])
    carry = Carry(
        torch.zeros(_BATCH, length, dtype=torch.int64, device=device),
        real.to(device),
        relative=relative,
        hidden=draw(_BATCH, length, config.hidden_size) / _STD,
        draws=Draws.of(torch.arange(_BATCH, device=device), length),
    )
    return layer, carry


def _pass(layer: EncoderLayer, carry: Carry, dtype: torch.dtype) -> Callable[[], dict[str, Tensor]]:
    """What runs a copy of the layer in ``dtype``, forward and backward, and gives its output and all gradients."""
    layer = copy.deepcopy(layer).to(dtype)
    hidden = carry.field("hidden")
    leaves = {"the input": hidden.to(dtype).requires_grad_()}
    carry = replace(carry, hidden=leaves["the input"])
    if carry.relative is not None:
        leaves["the relative table"] = carry.relative.table.to(dtype).requires_grad_()
        carry = replace(carry, relative=replace(carry.relative, table=leaves["the relative table"]))
    leaves |= dict(layer.named_parameters())
    # A weight for every element: the sum of a LayerNorm's output has hardly any gradient.
    weights = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view_as(hidden).to(dtype)

    def run() -> dict[str, Tensor]:
        output = layer(carry).hidden
        gradients = torch.autograd.grad((output * weights).sum(), list(leaves.values()))
        if output.is_cuda:
            torch.cuda.synchronize()
        names = ("the output", *(f"the gradient of {name}" for name in leaves))
        return dict(zip(names, (output.detach(), *gradients), strict=True))

    return run


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found.float() - right).norm())
