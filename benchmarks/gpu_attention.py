"""The attention op on a GPU, forward and backward: our kernels, plain torch, flashdeberta, disentangled-flash, SDPA.

Run by gpu_step.py. Outputs and gradients are compared before anything is timed. Times are medians of CUDA events with a
flushed L2 cache. TFLOP/s counts useful operations only: content, and one product with each used table row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from stopwatch import device_seconds, peak_memory
from torch import Tensor
from torch.nn import functional

from megadeberta.ops.attention import triton_plan
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout

BUCKETS, SPAN = 256, 512
REFERENCE, OURS, SDPA = "torch reference", "megadeberta triton", "plain attention, SDPA"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """One attention call."""

    batch: int
    length: int
    heads: int
    head_size: int
    dropout: float
    dtype: torch.dtype
    device: torch.device

    @property
    def table_rows(self) -> Tensor:
        return rows_by_distance(self.length, BUCKETS, SPAN).to(self.device)

    def useful_flops(self) -> float:
        """Forward and backward: six operations a multiply-add, two content products and two with the table."""
        table = int(self.table_rows.unique().numel())
        multiply_adds = 2 * self.length + 2 * table
        return 6.0 * multiply_adds * self.batch * self.length * self.heads * self.head_size


def shrink_tiles() -> None:
    """Tiles that cut a toy's few tokens, so that the interpreter runs every loop."""
    triton_plan.BLOCK = 32


def draw(shape: Shape) -> list[Tensor]:
    """Query, key, value ``[B, N, L, H]`` and both tables ``[N, P, H]``, as the projections lay them out."""
    content = (shape.batch, shape.length, shape.heads, shape.head_size)
    table = (2 * BUCKETS, shape.heads, shape.head_size)
    options = {"dtype": shape.dtype, "device": shape.device}
    sizes = (content, content, content, table, table)
    return [torch.randn(size, **options).transpose(-3, -2).requires_grad_() for size in sizes]


def ours(shape: Shape, backend: str) -> Attend:
    rows = shape.table_rows.to(torch.int32 if backend == "triton" else torch.int64)
    mask = padding_mask(torch.ones(shape.batch, shape.length, dtype=torch.bool, device=shape.device))
    places, seed = torch.arange(shape.batch, device=shape.device), torch.tensor(2**40, device=shape.device)
    dropout = CounterDropout(shape.dropout, seed, places) if shape.dropout else None

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        position = PositionTerms(rows, position_key, position_query)
        return disentangled_attention(query, key, value, position=position, mask=mask, dropout=dropout, backend=backend)

    return attend


def plain(shape: Shape) -> Attend:
    """Attention without position terms: what they cost is the ratio to it."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=shape.dropout)

    return attend


def flashdeberta(shape: Shape) -> Attend:
    """flashdeberta 0.0.8; it has no attention dropout."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled

    scale = (3 * shape.head_size) ** -0.5

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        tables = (position_key.unsqueeze(0), position_query.unsqueeze(0))  # [1, N, 2 * BUCKETS, H]
        return flash_attention_with_disentangled(query, key, value, None, *tables, False, scale, BUCKETS, SPAN)

    return attend


def disentangled_flash(shape: Shape) -> Attend:
    """disentangled-flash 1.1.1, whose dropout is another draw than ours."""
    from disentangled_flash.position import SharedPositionPlanCache, pad_position_table
    from disentangled_flash.training._kernels import training_attention

    plans = SharedPositionPlanCache(
        position_buckets=BUCKETS, max_relative_positions=SPAN, position_embedding_size=BUCKETS
    )
    plan = plans.compact(shape.length, shape.device)
    mask = torch.ones(shape.batch, shape.length, dtype=torch.bool, device=shape.device)
    options = {
        "score_scale": (3 * shape.head_size) ** -0.5,
        "has_padding": False,
        "strict_fp32": True,
        "dropout_p": shape.dropout,
        "gradient_band": plan.gradient_band,
    }

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        tables = (pad_position_table(table[:, plan.active_slots]) for table in (position_key, position_query))
        context = training_attention(query, key, value, *tables, plan.delta_to_local, mask, **options)
        return context.view(shape.batch, shape.length, shape.heads, shape.head_size).transpose(1, 2)

    return attend


PEERS = {"flashdeberta": flashdeberta, "disentangled-flash": disentangled_flash}


def check(shape: Shape, variants: dict[str, Attend]) -> None:
    """Compare outputs and gradients with the reference in fp32; stop if ours are wrong."""
    inputs = draw(shape)
    upstream = torch.randn_like(inputs[0])
    precise = [tensor.detach().float().requires_grad_() for tensor in inputs]
    context = ours(shape, "reference")(*precise)
    expected = [context.detach(), *torch.autograd.grad(context, precise, upstream.float())]
    for name, attend in variants.items():
        context = attend(*inputs)
        found = [context.detach(), *torch.autograd.grad(context, inputs, upstream)]
        worst = max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        print(f"  {name}: largest relative difference to the fp32 reference {worst:.1e}")
        if name == OURS and worst > TOLERANCE[shape.dtype]:
            raise SystemExit("our result is wrong; no time is worth printing")


def bench(shape: Shape, *, packages: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Print every variant's line; milliseconds by panel of the chart."""
    print(f"attention op, {shape}")
    checked = {REFERENCE: ours(shape, "reference"), OURS: ours(shape, "triton")}
    peers = {package: PEERS[package](shape) for package in packages}
    check(shape, checked | (peers if not shape.dropout else {}))
    variants = checked | peers | {SDPA: plain(shape)}
    return print_times(shape, variants, repeats)


def print_times(shape: Shape, variants: dict[str, Attend], repeats: int) -> dict[str, dict[str, float]]:
    panels: dict[str, dict[str, float]] = {"op, forward": {}, "op, forward + backward": {}}
    for name, attend in variants.items():
        inputs = draw(shape)
        upstream = torch.randn_like(inputs[0])
        used = inputs[:3] if name == SDPA else inputs

        def both(attend=attend, inputs=inputs, used=used, upstream=upstream) -> None:
            torch.autograd.grad(attend(*inputs), used, upstream)

        with torch.no_grad():
            forward = device_seconds(lambda a=attend, i=inputs: a(*i), shape.device, repeats, flush=True)
        with peak_memory(shape.device) as peak:
            total = device_seconds(both, shape.device, repeats, flush=True)
            extra = peak()
        panels["op, forward"][name], panels["op, forward + backward"][name] = 1e3 * forward, 1e3 * total
        base = [next(iter(panel.values())) / 1e3 for panel in panels.values()]
        print(
            f"  {name:24s} forward {1e3 * forward:9.3f} ms ({base[0] / forward:5.2f}x)  forward+backward "
            f"{1e3 * total:9.3f} ms ({base[1] / total:5.2f}x)  {shape.useful_flops() / total / 1e12:7.2f} TFLOP/s  "
            f"peak +{extra:.2f} GiB",
            flush=True,
        )
    return panels
