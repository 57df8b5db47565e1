"""Whether an attention backend is right and faster for a model on a device: one call of the op, forward and backward.

Shapes: B batch · N heads · L length · H head size · P rows of the table in reach.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megadeberta.ops.attention.comparison import AttentionCall, AttentionCheck
from megadeberta.ops.attention.compile_ahead import describe_failure
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.timing import stopwatch
from megadeberta.ops.counter_dropout import CounterDropout

_BATCH, _LONGEST = 8, 512
"""Of a model for thousands of tokens few inputs are that long."""


@dataclass(frozen=True)
class LayerShape:
    """What a layer's calls of the op have in common."""

    heads: int
    head_size: int
    longest: int
    """Tokens of a sequence."""
    half_width: int
    """Of the relative table; 0 without one."""
    terms: tuple[str, ...]
    """Of "c2p" and "p2c"."""
    dropout: float


def try_backend(
    candidate: str, rival: str, shape: LayerShape, dtype: torch.dtype, device: torch.device
) -> tuple[float, str]:
    """The time of ``candidate`` over that of ``rival``, and what is wrong with it, if anything is; then no time counts.

    Takes seconds, most of them compiling.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            call, upstream = _call(shape, dtype, device)
            finding = AttentionCheck(call).finding(candidate)
            if finding:
                return 1.0, finding
            measure = stopwatch(device)
            taken, other = (measure(partial(call.gradients, name, upstream)) for name in (candidate, rival))
            return taken / other, ""
    except Exception as error:  # what a compiler or a driver raises has no common class
        return 1.0, describe_failure(error)


def _call(shape: LayerShape, dtype: torch.dtype, device: torch.device) -> tuple[AttentionCall, Tensor]:
    """A call with random inputs, the same every time, whose every second sample is padded; and an upstream gradient
    ``[B, N, L, H]``."""
    generator = torch.Generator().manual_seed(0)
    length = min(shape.longest, _LONGEST)
    content = (_BATCH, length, shape.heads, shape.head_size)
    reach = min(shape.half_width, length)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype).transpose(-3, -2)

    tensors = {name: draw(*content) for name in ("query", "key", "value")}
    terms = {"c2p": "position key", "p2c": "position query"}
    tensors |= {terms[term]: draw(2 * reach, *content[2:]) for term in shape.terms if reach}
    rows = None
    if shape.terms and reach:
        rows = (torch.arange(1 - length, length, device=device) + reach).clamp(0, 2 * reach - 1)
    lengths = torch.tensor([length, length - length // 4]).repeat(_BATCH // 2)
    mask = padding_mask((torch.arange(length) < lengths.unsqueeze(-1)).to(device))
    dropout = CounterDropout(shape.dropout, torch.tensor(1, device=device), torch.arange(_BATCH, device=device))
    return AttentionCall(tensors, rows, None, mask, dropout if dropout.threshold else None), draw(*content)
