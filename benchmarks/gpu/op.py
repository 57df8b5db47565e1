"""The attention op alone, forward and backward: our backends and the peers, checked before they are timed.

Times are medians of CUDA events with a flushed L2 cache. TFLOP/s counts useful operations only: content, and one
product with each used table row. Shapes: B batch · N heads · L length · H head size · P rows of the table.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peers import BERT
from stopwatch import device_seconds, peak_memory
from torch import Tensor

from gpu.finding import Finding, WrongResultError
from gpu.launches import recorded_launches
from gpu.scale import Scale
from megadeberta.ops.attention.backends import BACKENDS, REFERENCE
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask, padding_mask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From query, key and value ``[B, N, L, H]`` and both tables ``[N, P, H]`` to the context ``[B, N, L, H]``."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative L2 distance to the reference in fp32, of the context and of every gradient."""
CHECKED_HEAD = 0


@dataclass(frozen=True)
class Shape:
    """One attention call."""

    batch: int
    length: int
    heads: int
    head_size: int
    buckets: int
    span: int
    dropout: float
    padding: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, parameters: dict[str, Any]) -> "Shape":
        scale = Scale.of(parameters)
        batch, length = scale.points[parameters["point"]]
        return cls(
            batch,
            length,
            scale.heads,
            scale.head_size,
            scale.buckets,
            scale.span(length),
            parameters["dropout"],
            parameters.get("padding", False),
            getattr(torch, scale.dtype),
            torch.device(scale.device),
        )

    def rows(self) -> Tensor:
        """Table row of every distance."""
        return rows_by_distance(self.length, self.buckets, self.span).to(self.device)

    def useful_flops(self) -> float:
        """Forward and backward: six operations a multiply-add, two content products and two with the table."""
        products = 2 * self.length + 2 * int(self.rows().unique().numel())
        return 6.0 * products * self.batch * self.length * self.heads * self.head_size

    def mask(self) -> AttentionMask | None:
        """None as in pre-training, or every other sample a quarter padding."""
        if not self.padding:
            return None
        real = torch.ones(self.batch, self.length, dtype=torch.bool, device=self.device)
        real[1::2, self.length - self.length // 4 :] = False
        return padding_mask(real)


def draw(shape: Shape) -> list[Tensor]:
    """Query, key, value ``[B, N, L, H]`` and both tables ``[N, P, H]``, as the projections lay them out."""
    content = (shape.batch, shape.length, shape.heads, shape.head_size)
    table = (2 * shape.buckets, shape.heads, shape.head_size)
    options = {"dtype": shape.dtype, "device": shape.device}
    sizes = (content, content, content, table, table)
    return [torch.randn(size, **options).transpose(-3, -2).requires_grad_() for size in sizes]


def ours(shape: Shape, backend: str, *, sample: int | None = None) -> Attend:
    """By a backend of the table. ``sample``: of it and ``CHECKED_HEAD`` alone, with the dropout they have there."""
    rows, mask = shape.rows(), shape.mask()
    samples, first_head = torch.arange(shape.batch, device=shape.device), 0
    if sample is not None:
        samples, first_head = samples[sample : sample + 1], CHECKED_HEAD
        mask = mask and padding_mask(mask.real[sample : sample + 1])
    seed = torch.tensor(2**40 + 12345, device=shape.device)
    dropout = CounterDropout(shape.dropout, seed, samples, first_head) if shape.dropout else None

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        position = PositionTerms(rows, position_key, position_query)
        return disentangled_attention(query, key, value, position=position, mask=mask, dropout=dropout, backend=backend)

    return attend


def build(shape: Shape, variant: str) -> Attend:
    """Ours by the name of a backend, or a peer by its name."""
    if variant in BACKENDS:
        return ours(shape, variant)
    from gpu.op_peers import PEERS

    return PEERS[variant](shape)


def largest_error(shape: Shape, attend: Attend) -> float:
    """Largest relative L2 distance of context and gradients of one head to the reference in fp32.

    The call is the one that is timed; the reference goes through it sample by sample, so that at no length it needs
    more than one ``[L, L]``.
    """
    inputs, head = draw(shape), CHECKED_HEAD
    context = attend(*inputs)
    upstream = torch.randn_like(context)
    grads = torch.autograd.grad(context, inputs, upstream)
    found = [tensor[:, head].float() for tensor in (context.detach(), *grads[:3])]
    found += [grad[head].float() for grad in grads[3:]]
    tables = [table.detach()[head : head + 1].float().requires_grad_() for table in inputs[3:]]
    content: list[list[Tensor]] = [[], [], [], []]
    for sample in range(shape.batch):
        place = (slice(sample, sample + 1), slice(head, head + 1))
        leaves = [tensor.detach()[place].float().requires_grad_() for tensor in inputs[:3]]
        right = ours(shape, REFERENCE, sample=sample)(*leaves, *tables)
        right.backward(upstream[place].float())
        for tensors, leaf in zip(content, (right.detach(), *(leaf.grad for leaf in leaves)), strict=True):
            tensors.append(leaf[0])
    expected = [torch.cat(tensors) for tensors in content] + [table.grad[0] for table in tables]
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Error, times, TFLOP/s and peak memory of one variant."""
    torch.manual_seed(0)
    shape, variant = Shape.of(parameters), parameters["variant"]
    attend = build(shape, variant)
    values: dict[str, Any] = {"batch": shape.batch, "length": shape.length}
    comparable = variant in BACKENDS or (variant != BERT and not shape.dropout)
    if comparable:
        with recorded_launches() if parameters["ours"] else nullcontext({}) as launches:
            values["error"] = largest_error(shape, attend)
        values |= {"tiles": tiles(launches)} if launches else {}
        if parameters["ours"] and not values["error"] <= TOLERANCE[shape.dtype]:
            raise WrongResultError(f"{values['error']:.1e} from the reference, allowed are {TOLERANCE[shape.dtype]}")
    yield Finding(values | times(shape, attend, with_tables=variant != BERT, repeats=Scale.of(parameters).repeats))


def tiles(launches: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Sizes of the tiles, warps and stages of each of our kernels: what a trial may have chosen."""
    wanted = ("BM", "BN", "num_warps", "num_stages")
    return {
        kernel: " ".join(f"{key}={facts['choice'][key]}" for key in wanted if key in facts["choice"])
        for kernel, facts in launches.items()
    }


def times(shape: Shape, attend: Attend, *, with_tables: bool, repeats: int) -> dict[str, float]:
    inputs = draw(shape)
    used = inputs if with_tables else inputs[:3]
    upstream = torch.randn_like(inputs[0])
    with torch.no_grad():
        forward = device_seconds(lambda: attend(*inputs), shape.device, repeats, flush=True)
    with peak_memory(shape.device) as peak:
        both = device_seconds(
            lambda: torch.autograd.grad(attend(*inputs), used, upstream), shape.device, repeats, flush=True
        )
        extra = peak()
    rate = shape.useful_flops() / both / 1e12
    return {"forward_ms": 1e3 * forward, "both_ms": 1e3 * both, "tflops": rate, "peak_gib": extra}
