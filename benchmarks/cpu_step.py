"""The CPU path against transformers' eager DebertaV2ForMaskedLM and a BERT of the same size: one thread, one process.

    python benchmarks/cpu_step.py [--shapes 4x128 2x512] [--repeats 5] [--layers 12] [--dropout 0] [--plot steps.png]

Same weights and inputs; loss and gradients are compared before anything is timed. Variants are interleaved, and times
are CPU seconds of this process, so that other load on the machine weighs less; a figure is the median of the ratios of
neighbouring runs. The kernels of flashdeberta and disentangled-flash need a GPU: see gpu_day.py.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import torch
from attention_layer import draw_inputs, our_layer, their_layer, with_backward
from step_models import (
    BERT,
    DECODER,
    EAGER,
    MASKED,
    REPLACED,
    TOY,
    Variant,
    build_ours,
    changed,
    check_equal,
    copy_weights,
    draw_batch,
    find_packages,
    selective,
    variants,
)
from stopwatch import draw_bars, gemm_rate, interleave, print_ratios
from torch import nn
from transformers_pair import PAIR, TransformersPair, check_pair, step_of_pair

from megadeberta.config.model import ModelConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.layers.flops import run_flops_per_token

OURS, LEAN, LEANEST = "megadeberta", "megadeberta, lean memory", "megadeberta, and selective"
BACKENDS = {OURS: "cpu", LEAN: "cpu-lean"}
GRADIENT_TOLERANCE = 1e-4  # two fp32 evaluations with other orders of summation, through all layers
Seconds = dict[str, list[float]]


def build(models: dict[str, Variant], config: ModelConfig) -> dict[str, nn.Module]:
    """All models; ours without a mask decoder have the weights of transformers'."""
    layers = config.num_hidden_layers
    built = {name: model.build(changed(model.config, num_hidden_layers=layers)) for name, model in models.items()}
    for name in built.keys() & {OURS, LEAN, LEANEST}:
        copy_weights(built[EAGER], built[name], changed(config, enhanced_mask_decoder=False))
    return {name: model.train() for name, model in built.items()}


def bench_step(shape: tuple[int, int], config: ModelConfig, models: dict[str, Variant], repeats: int) -> Seconds:
    """C1, C2 (step), C5 (step against the matrix products it needs), G9 (against BERT), bytes kept."""
    print(f"step without optimizer, {shape[0]}x{shape[1]}, {config.num_hidden_layers} layers")
    built, batch = build(models, config), draw_batch(*shape, config.vocab_size)
    exact = not config.hidden_dropout_prob
    if exact:
        check_equal(built[EAGER], built[OURS], batch, tolerance=GRADIENT_TOLERANCE)
    seconds = interleave(
        {name: (lambda n=name, m=model: models[n].step(m, batch)) for name, model in built.items()}, repeats
    )
    rate, tokens = gemm_rate(torch.device("cpu"), torch.float32), batch.ids.numel()
    notes = {}
    for name, values in seconds.items():
        flops = run_flops_per_token(models[name].config, MASKED, sequence_length=shape[1]) * tokens
        of_bert = statistics.median(a / b for a, b in zip(values, seconds[BERT], strict=True))
        notes[name] = f"  {statistics.median(values) * rate / flops:5.2f} x its products  {of_bert:5.2f} x BERT"
    print_ratios(seconds, EAGER, notes)
    print(f"  (matrix products at {rate / 1e9:.0f} GFLOP/s)")
    for name, model in built.items() if exact else ():
        per_token = models[name].kept_bytes(model, batch) / tokens / config.num_hidden_layers / 1024
        print(f"  {name:28s} keeps {per_token:6.1f} KiB a token a layer, head included")
    return seconds


def bench_optimizer(shape: tuple[int, int], config: ModelConfig, models: dict[str, Variant], repeats: int) -> Seconds:
    """C4: the whole step with the optimizer of each side."""
    print(f"step with optimizer, {shape[0]}x{shape[1]}, {config.num_hidden_layers} layers")
    compared = {name: models[name] for name in (EAGER, OURS, LEAN, LEANEST)}
    built, batch = build(compared, config), draw_batch(*shape, config.vocab_size)
    runs: dict[str, Callable[[], object]] = {}
    for name, model in built.items():
        if name == EAGER:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
        else:
            optimizer = build_optimizer(model, OptimizerConfig(lr=1e-5), offloaded=False)
        label = f"{name} + {'AdamW' if name == EAGER else 'fused AdamW'}"
        runs[label] = lambda m=model, n=name, o=optimizer: (compared[n].step(m, batch), o.step())
    seconds = interleave(runs, repeats)
    print_ratios(seconds, next(iter(runs)))
    return seconds


def bench_replaced(shape: tuple[int, int], config: ModelConfig, models: dict[str, Variant], repeats: int) -> Seconds:
    """C8, G10: the step of replaced token detection against transformers' classes and our step of masked tokens."""
    print(f"replaced tokens (RTD), {shape[0]}x{shape[1]}, {config.num_hidden_layers} layers")
    mlm, batch = models[OURS], draw_batch(*shape, config.vocab_size)
    rtd = build_ours(mlm.config, backend=BACKENDS[OURS], device=torch.device("cpu"), objective=REPLACED).train()
    pair = TransformersPair(mlm.config).train()
    if not config.hidden_dropout_prob:
        check_pair(pair, rtd, batch, mlm.config, tolerance=GRADIENT_TOLERANCE)
    masked = mlm.build(mlm.config).train()
    theirs, ours, rival = PAIR, f"{OURS}, replaced tokens", f"{OURS}, masked tokens"
    runs: dict[str, Callable[[], object]] = {
        theirs: lambda: step_of_pair(pair, batch),
        ours: lambda: mlm.step(rtd, batch),
        rival: lambda: mlm.step(masked, batch),
    }
    seconds = interleave(runs, repeats)
    print_ratios(seconds, theirs)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[rival], strict=True)]
    print(f"  RTD step : MLM step {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return seconds


def bench_layer(shape: tuple[int, int], config: ModelConfig, models: dict[str, Variant], repeats: int) -> Seconds:
    """C3: one attention layer with its projections and LayerNorm, forward and backward."""
    print(f"attention layer, {shape[0]}x{shape[1]}")
    small = changed(config, num_hidden_layers=2)
    compared = {name: model for name, model in models.items() if name not in (DECODER, LEANEST)}
    built = build(compared, small)
    like = next(built[EAGER].parameters())
    shared = draw_inputs(changed(small, enhanced_mask_decoder=False), shape, like)
    runs = {}
    for name, model in built.items():
        inputs = (
            draw_inputs(changed(compared[name].config, num_hidden_layers=2), shape, like) if name == BERT else shared
        )
        forward = our_layer(model, inputs) if compared[name].is_ours else their_layer(model, inputs)
        runs[name] = with_backward(forward, model, inputs)
    if not config.hidden_dropout_prob:
        pairs = zip(runs[EAGER](), runs[OURS](), strict=False)
        worst = max(float((a - b).norm() / a.norm()) for a, b in list(pairs)[:2])
        if worst > GRADIENT_TOLERANCE:
            raise SystemExit(f"the gradients differ by {worst:.1e}; no time is worth printing")
    seconds = interleave(runs, 4 * repeats)
    print_ratios(seconds, EAGER)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["4x128", "2x512"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.0)
    benches = {"layer": bench_layer, "step": bench_step, "optimizer": bench_optimizer, "rtd": bench_replaced}
    parser.add_argument("--only", nargs="+", choices=benches, default=list(benches))
    parser.add_argument("--toy", action="store_true", help="a small model: every line of this in seconds")
    parser.add_argument("--plot", help="write a bar chart to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, 1 thread of {os.cpu_count()}, load {load:.1f}, dropout {args.dropout}")
    drops = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    config = ModelConfig(**(TOY if args.toy else {"num_hidden_layers": args.layers}), **drops)
    cpu = torch.device("cpu")
    models = variants(config, cpu, packages=find_packages(cpu), backends=BACKENDS)
    models[LEANEST] = selective(models[LEAN])
    panels = {}
    for bench in args.only:
        for text in args.shapes:
            batch, length = (int(part) for part in text.split("x"))
            seconds = benches[bench]((batch, length), config, models, args.repeats)
            panels[f"{bench}, {text}"] = {name: statistics.median(values) for name, values in seconds.items()}
    if args.plot:
        draw_bars(args.plot, panels, "CPU seconds")


if __name__ == "__main__":
    main()
