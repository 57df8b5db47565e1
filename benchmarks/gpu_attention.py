"""The attention op on a GPU, forward and backward, side by side in one run: our kernels, plain torch, flashdeberta.

    python benchmarks/gpu_attention.py [--batch 64 --length 512 --heads 12 --head-size 64] [--plot out.png]
    TRITON_INTERPRET=1 python benchmarks/gpu_attention.py --toy        # every line of it on a CPU, in seconds

Outputs and gradients are compared before anything is timed. Times are medians of CUDA events with a flushed L2 cache.
TFLOP/s counts useful operations only: content, and one product with each used table row. flashdeberta 0.0.8 takes part
where it is installed; it ignores dropout.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.ops import triton_plan
from megadeberta.ops.attention_mask import padding_mask
from megadeberta.ops.counter_dropout import draw_dropout
from megadeberta.ops.disentangled_attention import disentangled_attention
from megadeberta.ops.position_terms import PositionTerms
from megadeberta.ops.relative_position import rows_by_distance

BUCKETS, SPAN = 256, 512
REFERENCE = "torch reference"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


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


def draw(shape: Shape) -> list[Tensor]:
    """Query, key, value ``[B, N, L, H]`` and both tables ``[N, P, H]``, as the projections lay them out."""
    content = (shape.batch, shape.length, shape.heads, shape.head_size)
    table = (2 * BUCKETS, shape.heads, shape.head_size)
    options = {"dtype": shape.dtype, "device": shape.device}
    sizes = (content, content, content, table, table)
    return [torch.randn(size, **options).transpose(-3, -2).requires_grad_() for size in sizes]


def ours(shape: Shape, backend: str) -> Callable[..., Tensor]:
    rows = shape.table_rows.to(torch.int32 if backend == "triton" else torch.int64)
    mask = padding_mask(torch.ones(shape.batch, shape.length, dtype=torch.bool, device=shape.device))

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        dropout = draw_dropout(shape.dropout, shape.device) if shape.dropout else None
        position = PositionTerms(rows, position_key, position_query)
        return disentangled_attention(query, key, value, position=position, mask=mask, dropout=dropout, backend=backend)

    return attend


def bert(shape: Shape) -> Callable[..., Tensor]:
    """Plain attention of the same size: the price of the position terms."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=shape.dropout)

    return attend


def flashdeberta(shape: Shape) -> Callable[..., Tensor] | None:
    """The public kernel of that name, or None where it is not installed or there is no GPU for it."""
    if find_spec("flashdeberta") is None or shape.device.type == "cpu":
        return None
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled

    def attend(query: Tensor, key: Tensor, value: Tensor, position_key: Tensor, position_query: Tensor) -> Tensor:
        lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=shape.device)
        tables = (position_key.unsqueeze(0), position_query.unsqueeze(0))  # [1, N, 2 * BUCKETS, H]
        scale = (3 * shape.head_size) ** -0.5
        return flash_attention_with_disentangled(query, key, value, lengths, *tables, False, scale, BUCKETS, SPAN)

    return attend


def check(shape: Shape, variants: dict[str, Callable[..., Tensor]]) -> None:
    """Stop if the variants do not give the same outputs and gradients."""
    inputs = draw(shape)
    upstream = torch.randn_like(inputs[0])
    expected = None
    for name, attend in variants.items():
        torch.manual_seed(0)  # of the dropout
        context = attend(*inputs)
        found = [context.detach(), *torch.autograd.grad(context, inputs, upstream)]
        if expected is None:
            expected = found
            continue
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        print(f"  {name}: largest relative difference to {REFERENCE} {worst:.1e}")
        if worst > TOLERANCE[shape.dtype]:
            raise SystemExit("the results differ; no time is worth printing")


def milliseconds(run: Callable[[], object], shape: Shape, repeats: int) -> float:
    """Median time of ``run`` with the L2 cache flushed before each."""
    if shape.device.type == "cpu":
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    flush = torch.empty(2**28, dtype=torch.int8, device=shape.device)
    times = []
    for number in range(repeats + 3):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def bench(shape: Shape, repeats: int) -> dict[str, tuple[float, float]]:
    """Forward and forward + backward milliseconds of every variant."""
    variants = {REFERENCE: ours(shape, "reference"), "megadeberta triton": ours(shape, "triton")}
    public = flashdeberta(shape)
    if public is not None and not shape.dropout:
        variants["flashdeberta"] = public
    check(shape, variants)
    variants |= {"plain attention (SDPA)": bert(shape)} | ({"flashdeberta": public} if public is not None else {})
    results = {}
    for name, attend in variants.items():
        inputs = draw(shape)
        upstream = torch.randn_like(inputs[0])
        used = inputs[:3] if "plain" in name else inputs

        def both(attend=attend, inputs=inputs, used=used, upstream=upstream) -> None:
            torch.autograd.grad(attend(*inputs), used, upstream)

        if shape.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        with torch.no_grad():
            forward = milliseconds(lambda attend=attend, inputs=inputs: attend(*inputs), shape, repeats)
        total = milliseconds(both, shape, repeats)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if shape.device.type == "cuda" else float("nan")
        results[name] = (forward, total)
        base = results[REFERENCE]
        print(
            f"  {name:24s} forward {forward:9.3f} ms ({base[0] / forward:5.2f}x)  forward+backward {total:9.3f} ms "
            f"({base[1] / total:5.2f}x)  {shape.useful_flops() / total / 1e9:7.1f} TFLOP/s  peak +{peak:.2f} GiB",
            flush=True,
        )
    return results


def draw_plot(results: dict[str, tuple[float, float]], path: str) -> None:
    import matplotlib.pyplot as plt

    names = list(results)
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(names) + 1))
    axes.barh(names, [results[name][1] for name in names], color="tab:blue", label="forward + backward")
    axes.barh(names, [results[name][0] for name in names], color="tab:orange", label="forward")
    axes.set_xlabel("milliseconds")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 64), ("length", 512), ("heads", 12), ("head-size", 64), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--toy", action="store_true", help="one small fp32 call on a CPU under TRITON_INTERPRET=1")
    parser.add_argument("--plot", help="write a bar chart to this file")
    args = parser.parse_args()
    if args.toy:
        triton_plan.BLOCK = 32
        shape = Shape(1, 40, 2, 32, args.dropout, torch.float32, torch.device("cpu"))
    else:
        sizes = (args.batch, args.length, args.heads, args.head_size)
        shape = Shape(*sizes, args.dropout, torch.bfloat16, torch.device("cuda"))
    print(f"torch {torch.__version__} on {shape.device}: {shape}")
    results = bench(shape, args.repeats)
    if args.plot:
        draw_plot(results, args.plot)


if __name__ == "__main__":
    main()
