"""Whether an attention backend is right and faster for a model on a device: one call of the op, forward and backward.

Shapes: B batch · N heads · L length · H head size · P rows of the table in reach.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.ops.attention.backends import REFERENCE
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.counter_dropout import CounterDropout

_BATCH, _LONGEST, _REPEATS = 8, 512, 5
"""Of a model for thousands of tokens few inputs are that long."""
_TIMES_WORSE, _ROUNDING = 4.0, 1e-4
"""How much further than the reference in its own precision results may be from those in fp32, and a fraction of their
size beside it: fp32 has no distance to compare with."""


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
            return _compare(candidate, rival, _Call(shape, device), dtype)
    except Exception as error:  # what a compiler or a driver raises has no common class
        return 1.0, f"failed with {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _compare(candidate: str, rival: str, call: "_Call", dtype: torch.dtype) -> tuple[float, str]:
    right, rounded, found = call.run(REFERENCE, torch.float32), call.run(REFERENCE, dtype), call.run(candidate, dtype)
    for number, (expected, near, result) in enumerate(zip(right, rounded, found, strict=True)):
        away, allowed = ((t.float() - expected).norm() for t in (result, near))
        allowed = _TIMES_WORSE * allowed + _ROUNDING * expected.norm()
        if not away <= allowed:
            what = f"gradient {number}" if number else "output"
            return 1.0, f"its {what} is {away:.2g} away from the reference; rounding is {allowed:.2g}"
    seconds = {name: call.seconds(name, dtype) for name in (rival, candidate)}
    return seconds[candidate] / seconds[rival], ""


class _Call:
    """Random inputs, the same every time; the second half of the samples is padded."""

    def __init__(self, shape: LayerShape, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        length = min(shape.longest, _LONGEST)
        content = (_BATCH, length, shape.heads, shape.head_size)
        reach = min(shape.half_width, length)
        table = (2 * reach, shape.heads, shape.head_size)
        shapes = [content] * 4 + [table] * (len(shape.terms) if reach else 0)
        self._upstream, *self._inputs = (torch.randn(each, generator=generator).to(device) for each in shapes)
        self._terms = shape.terms if reach else ()
        self._rows = (torch.arange(1 - length, length, device=device) + reach).clamp(0, max(2 * reach - 1, 0))
        lengths = torch.tensor([length, length - length // 4]).repeat_interleave(_BATCH // 2)
        self._mask = padding_mask((torch.arange(length) < lengths.unsqueeze(-1)).to(device))
        seed = torch.tensor(1, device=device)
        self._dropout = CounterDropout(shape.dropout, seed, torch.arange(_BATCH, device=device))

    def run(self, backend: str, dtype: torch.dtype) -> list[Tensor]:
        """Context ``[B, L, N, H]`` and the gradients of all inputs."""
        leaves = [each.to(dtype).requires_grad_() for each in self._inputs]
        query, key, value, *tables = (leaf.transpose(-3, -2) for leaf in leaves)
        by_term = dict(zip(self._terms, tables, strict=True))
        context = disentangled_attention(
            query,
            key,
            value,
            position=PositionTerms(self._rows, by_term.get("c2p"), by_term.get("p2c")) if by_term else None,
            mask=self._mask,
            dropout=self._dropout if self._dropout.threshold else None,
            backend=backend,
        ).transpose(1, 2)
        return [context.detach(), *torch.autograd.grad(context, leaves, self._upstream.to(dtype))]

    def seconds(self, backend: str, dtype: torch.dtype) -> float:
        """Median of a few runs, after one that is not counted."""
        times = []
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            self.run(backend, dtype)
            if self._upstream.is_cuda:
                torch.cuda.synchronize(self._upstream.device)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])
