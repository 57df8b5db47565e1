"""On a GPU, in one run: the attention op, one attention layer, and whole training steps, against all peers.

    python benchmarks/gpu_step.py [--size base|large|1.5b] [--batch 64 --length 512 --dropout 0.1] [--plot steps.png]
    TRITON_INTERPRET=1 python benchmarks/gpu_step.py --toy        # every line of it on a CPU, in seconds

Peers: transformers eager, flashdeberta and disentangled-flash where they are installed, and a BERT of the same size on
SDPA out of our own layers. A step is forward, backward and a fused AdamW over fp32 copies of the bf16 weights. MFU
counts useful operations only, against the data sheet and against the product of two 8192 x 8192 matrices in the same
run. Models are on the device one at a time, so that a peak is each one's own.
"""

import argparse
import gc
from dataclasses import dataclass

import gpu_attention
import torch
from attention_layer import draw_inputs, our_layer, their_layer, with_backward
from step_models import (
    MASKED,
    TOY,
    Variant,
    build_ours,
    build_theirs,
    changed,
    check_equal,
    copy_weights,
    draw_batch,
    find_packages,
    selective,
    variants,
)
from stopwatch import device_seconds, draw_bars, gemm_rate, peak_memory
from torch import nn

from megadeberta.config.model import ModelConfig
from megadeberta.layers.flops import run_flops_per_token
from megadeberta.observability.device_peaks import device_peak_flops

SIZES: dict[str, dict[str, int]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
    },
}
BACKENDS = {"megadeberta triton": "triton", "megadeberta reference": "reference"}
OURS = next(iter(BACKENDS))
CHECK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}  # gradients through all layers


@dataclass(frozen=True)
class Run:
    """What all models share."""

    config: ModelConfig
    shape: tuple[int, int]  # samples, tokens of each
    repeats: int
    dtype: torch.dtype
    device: torch.device

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, self.dtype).train()


class MasterAdamW:
    """Fused AdamW over fp32 copies of the weights, as every mixed-precision run has it."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._masters = [weight.detach().float().clone() for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._masters, lr=1e-6, fused=True)

    def step(self) -> None:
        for master, weight in zip(self._masters, self._weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        self._optimizer.step()
        torch._foreach_copy_([weight.detach() for weight in self._weights], self._masters)


def check(run: Run) -> None:
    """Stop unless our model gives transformers' loss and gradients, without dropout and on two samples."""
    config = changed(run.config, enhanced_mask_decoder=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs, ours = build_theirs(config), build_ours(config, backend="triton", device=run.device)
    copy_weights(theirs, ours, config)
    batch = draw_batch(min(2, run.shape[0]), run.shape[1], config.vocab_size, device=run.device)
    check_equal(run.place(theirs), run.place(ours), batch, tolerance=CHECK_TOLERANCE[run.dtype])


def bench_layers(run: Run, models: dict[str, Variant]) -> dict[str, dict[str, float]]:
    """G1 to G6 for a whole attention layer; milliseconds by panel of the chart."""
    print(f"attention layer, {run.shape[0]}x{run.shape[1]}")
    panels: dict[str, dict[str, float]] = {"layer, forward": {}, "layer, forward + backward": {}}
    for name, variant in models.items():
        config = changed(variant.config, num_hidden_layers=2)
        model = run.place(variant.build(config))
        inputs = draw_inputs(config, run.shape, next(model.parameters()))
        forward = our_layer(model, inputs) if variant.is_ours else their_layer(model, inputs)
        both = with_backward(forward, model, inputs)
        with torch.no_grad():
            times = [device_seconds(forward, run.device, run.repeats, flush=True)]
        with peak_memory(run.device) as peak:
            times.append(device_seconds(both, run.device, run.repeats, flush=True))
            extra = peak()
        for panel, seconds in zip(panels.values(), times, strict=True):
            panel[name] = 1e3 * seconds
        print(
            f"  {name:26s} forward {1e3 * times[0]:9.3f} ms  forward+backward {1e3 * times[1]:9.3f} ms  "
            f"{inputs.useful_flops() / times[1] / 1e12:7.2f} TFLOP/s  peak +{extra:.2f} GiB",
            flush=True,
        )
    print_ratios(panels["layer, forward + backward"])
    return panels


def measure(name: str, variant: Variant, run: Run, rate: float) -> float:
    """Seconds of a step with its optimizer, printed with all that follows from it."""
    with peak_memory(run.device) as peak:
        model = run.place(variant.build(variant.config))
        batch = draw_batch(*run.shape, run.config.vocab_size, device=run.device)
        optimizer = MasterAdamW(model)
        whole = device_seconds(lambda: (variant.step(model, batch), optimizer.step()), run.device, run.repeats)
        update = device_seconds(optimizer.step, run.device, run.repeats)
        most = peak()
    kept_kib = variant.kept_bytes(model, batch) / run.tokens / run.config.num_hidden_layers / 1024
    flops = run_flops_per_token(variant.config, MASKED, sequence_length=run.shape[1])
    useful = flops * run.tokens / whole
    sheet = device_peak_flops(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else None
    of_sheet = "" if sheet is None else f"{useful / sheet:.1%} of the data sheet, "
    print(
        f"  {name:26s} {1e3 * whole:9.2f} ms, of it AdamW {1e3 * update:7.2f}  {run.tokens / whole:9.0f} tokens/s"
        f"  {useful / 1e12:7.2f} TFLOP/s, MFU {of_sheet}{useful / rate:.1%} of products  peak {most:6.2f} GiB  keeps "
        f"{kept_kib:6.1f} KiB a token a layer, head included",
        flush=True,
    )
    return whole


def bench_steps(run: Run, models: dict[str, Variant]) -> dict[str, dict[str, float]]:
    """G7 to G9, M1, M3; milliseconds by panel of the chart."""
    print(f"training step, {run.shape[0]}x{run.shape[1]}, {run.dtype}")
    check(run)
    rate = gemm_rate(run.device, run.dtype)
    print(f"  (matrix products at {rate / 1e12:.2f} TFLOP/s)")
    milliseconds: dict[str, float] = {}
    for name, variant in models.items():
        try:
            milliseconds[name] = 1e3 * measure(name, variant, run, rate)
        except torch.cuda.OutOfMemoryError:
            print(f"  {name:26s} out of memory")
        gc.collect()
    print_ratios(milliseconds)
    return {"training step": milliseconds}


def print_ratios(milliseconds: dict[str, float]) -> None:
    ours = milliseconds.get(OURS)
    for name, value in milliseconds.items():
        if ours is not None and name != OURS:
            print(f"  {OURS} : {name:26s} {ours / value:5.2f} of its time ({value / ours:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--size", choices=("base", "large", "1.5b"), default="base")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=10)
    kinds = ("op", "layer", "step")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--toy", action="store_true", help="a small fp32 model on a CPU under TRITON_INTERPRET=1")
    parser.add_argument("--plot", help="write a bar chart to this file")
    args = parser.parse_args()
    sizes = TOY if args.toy else SIZES[args.size]
    length = 20 if args.toy else args.length
    positions = {} if length <= 512 else {"max_position_embeddings": length, "max_relative_positions": length}
    drops = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    config = ModelConfig(**sizes, **positions, **drops)
    if args.toy:
        gpu_attention.shrink_tiles()
        run = Run(config, (1, length), 1, torch.float32, torch.device("cpu"))
    else:
        run = Run(config, (args.batch, length), args.repeats, torch.bfloat16, torch.device("cuda"))
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name() if run.device.type == 'cuda' else 'a CPU'}")
    packages, panels = find_packages(run.device), {}
    if "op" in args.only:
        sizes = (*run.shape, config.num_attention_heads, config.head_size)
        shape = gpu_attention.Shape(*sizes, args.dropout, run.dtype, run.device)
        panels |= gpu_attention.bench(shape, packages=packages, repeats=args.repeats)
    models = variants(config, run.device, packages=packages, backends=BACKENDS)
    layers = {name: variant for name, variant in models.items() if "decoder" not in name}
    models[f"{OURS}, selective"] = selective(models[OURS])
    if "layer" in args.only:
        panels |= bench_layers(run, layers)
    if "step" in args.only:
        panels |= bench_steps(run, models)
    if args.plot:
        draw_bars(args.plot, panels, "milliseconds")


if __name__ == "__main__":
    main()
