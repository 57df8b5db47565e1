"""One call of attention and whether a backend computes it right on a device: against the reference in fp32.

A candidate runs at full size, so that what is compiled is what a run uses; its results are compared for a few samples
and heads only, so that the reference needs little memory. Nothing flows back from the others: the gradients of what all
samples share are then the same.

Shapes: B batch · L length · Q query rows · N heads · H head size · P rows of the windowed table.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megadeberta.ops.attention.backends import REFERENCE
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.counter_dropout import CounterDropout

_SAMPLES, _SCORES = 2, 2**24
"""Most that are compared: the reference holds the scores several times, in fp32."""
_TIMES_WORSE, _ROUNDING = 4.0, 1e-4
"""How much further than the reference in its own precision results may be from those in fp32, and a fraction of their
size beside it: fp32 has no distance to compare with."""

Results = Mapping[str, Tensor]
"""The output and all gradients, by name."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of ``disentangled_attention``."""

    tensors: Mapping[str, Tensor]
    """Those that have a gradient, by their name in messages: "query" ``[B, N, Q, H]``, "key" and "value"
    ``[B, N, L, H]``, and of "position key" and "position query" ``[N, P, H]`` those that the recipe has."""
    rows: Tensor | None
    """Of ``PositionTerms``, ``[2L - 1]``."""
    query_positions: Tensor | None
    """``[B, Q]``."""
    mask: AttentionMask | None
    dropout: CounterDropout | None

    def run(self, backend: str) -> Tensor:
        """Context ``[B, N, Q, H]``."""
        position = None
        if self.rows is not None:
            position = PositionTerms(self.rows, self.tensors.get("position key"), self.tensors.get("position query"))
        return disentangled_attention(
            *(self.tensors[name] for name in ("query", "key", "value")),
            position=position,
            query_positions=self.query_positions,
            mask=self.mask,
            dropout=self.dropout,
            backend=backend,
        )

    def gradients(self, backend: str, upstream: Tensor) -> dict[str, Tensor]:
        """The context and every gradient, by name, for ``upstream`` ``[B, N, Q, H]``."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}
        context = replace(self, tensors=leaves).run(backend)
        found = torch.autograd.grad(context, list(leaves.values()), upstream)
        gradients = {f"the gradient of the {name}": each for name, each in zip(leaves, found, strict=True)}
        return {"the output": context.detach(), **gradients}

    def part(self, samples: int, heads: int) -> "AttentionCall":
        """Of the first samples and heads only; the results of these are the same."""
        mask, dropout = self.mask, self.dropout
        return replace(
            self,
            tensors={name: part_of(tensor, samples, heads) for name, tensor in self.tensors.items()},
            query_positions=None if self.query_positions is None else self.query_positions[:samples],
            mask=None if mask is None else mask.of_samples(samples),
            dropout=None if dropout is None else replace(dropout, samples=dropout.samples[:samples]),
        )

    def to(self, dtype: torch.dtype) -> "AttentionCall":
        """With the same values in another precision."""
        return replace(self, tensors={name: tensor.to(dtype) for name, tensor in self.tensors.items()})


def part_of(tensor: Tensor, samples: int, heads: int) -> Tensor:
    """``[B, N, ., H]`` or, of a table, ``[N, P, H]``: the first samples and heads."""
    return tensor[:samples, :heads] if tensor.dim() == 4 else tensor[:heads]


class AttentionCheck:
    """The results that a call must have."""

    def __init__(self, call: AttentionCall) -> None:
        query = call.tensors["query"]
        batch, heads, rows, _ = query.shape
        samples = min(batch, _SAMPLES)
        self._call = call
        self._part = samples, max(1, min(heads, _SCORES // (samples * rows * call.tensors["key"].size(2))))
        generator = torch.Generator(query.device).manual_seed(1)
        upstream = torch.randn(query.transpose(1, 2).shape, generator=generator, device=query.device, dtype=query.dtype)
        upstream = upstream.transpose(1, 2)  # as the output projection has it
        of_part = part_of(upstream, *self._part)
        self._upstream = torch.zeros_like(upstream)
        part_of(self._upstream, *self._part).copy_(of_part)
        part = call.part(*self._part)
        with _exact_products():
            self._right = part.to(torch.float32).gradients(REFERENCE, of_part.float())
        self._rounded = part.gradients(REFERENCE, of_part)

    def finding(self, backend: str) -> str:
        """What is wrong with a backend; empty if nothing is."""
        found = self._call.gradients(backend, self._upstream)
        return difference(
            {name: part_of(each, *self._part) for name, each in found.items()}, self._right, self._rounded
        )


def difference(found: Results, right: Results, rounded: Results) -> str:
    """Which result is further from the one in fp32 than rounding explains; empty if none is.

    Args:
        rounded: of the reference in the precision of ``found``.
    """
    for name, expected in right.items():
        allowed = _TIMES_WORSE * _distance(rounded[name], expected) + _ROUNDING * float(expected.norm())
        away = _distance(found[name], expected)
        if not away <= allowed:
            return f"{name} is {away:.2g} away from the reference; rounding is {allowed:.2g}"
    return ""


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of fp32 in fp32, where the recipe lets the GPU round them to TF32."""
    flags = torch.backends.cuda.matmul
    before, flags.allow_tf32 = flags.allow_tf32, False
    try:
        yield
    finally:
        flags.allow_tf32 = before


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found.float() - right).norm())
