"""transformers' DebertaV2ForSequenceClassification with the fast attention against its eager one, on a CPU.

    python benchmarks/hf_attention.py [--shapes 8x128 4x512] [--layers 4] [--repeats 5] [--dropout 0.1] [--plot hf.png]

Base size (v3: width 768, 12 heads, shared projections, 256 buckets), one thread, one process: inference is a forward
pass in evaluation mode, fine-tuning forward and backward in training mode, without the optimizer. Both are one model
whose attention is switched between runs. Outputs and gradients are compared first, without dropout and with padding.
Variants are interleaved; times are CPU seconds of this process, and a ratio is the median of those of neighbouring
runs.

Shapes: B batch · L length.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial

import torch
from stopwatch import draw_bars, interleave, print_ratios
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from megadeberta.hf import use_eager_attention, use_fast_attention

EAGER, FAST = "transformers eager", "use_fast_attention"
SWITCH: dict[str, Callable[[nn.Module], nn.Module]] = {EAGER: use_eager_attention, FAST: use_fast_attention}
PUBLISHED_LAYERS = 12
TOLERANCE = 1e-5  # two fp32 evaluations with other orders of summation, through all layers
TOY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}


def build(layers: int, dropout: float, *, toy: bool) -> DebertaV2ForSequenceClassification:
    """Random weights; published settings of v3 base. With fewer layers the word table has fewer rows in proportion, so
    that its dense gradient weighs in a step what it weighs with all layers."""
    torch.manual_seed(0)
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    base["vocab_size"] = 128_100 * layers // PUBLISHED_LAYERS
    config = DebertaV2Config(
        **(TOY if toy else base),
        num_hidden_layers=layers,
        relative_attention=True,
        position_buckets=256,
        pos_att_type="p2c|c2p",
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return DebertaV2ForSequenceClassification(config)


def draw_batch(shape: tuple[int, int], vocab_size: int, *, padded: bool) -> dict[str, Tensor]:
    """``[B, L]`` random tokens; with ``padded`` sequences of other lengths down to a half."""
    batch, length = shape
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(length // 2, length + 1, (batch,), generator=generator) if padded else [length] * batch
    mask = (torch.arange(length) < torch.as_tensor(lengths).unsqueeze(-1)).long()
    ids = torch.randint(5, vocab_size, shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(batch) % 2}


def check_equal(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Stop unless logits and all gradients agree, without dropout."""
    model.eval()  # no dropout, gradients all the same
    found = {}
    for name, switch in SWITCH.items():
        switch(model).zero_grad()
        output = model(**batch)
        output.loss.backward()
        found[name] = (output.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None))
        for parameter in model.parameters():
            parameter.grad = None
    logits, *grads = zip(found[EAGER], found[FAST], strict=True)
    total = torch.stack([theirs.norm() for theirs, _ in grads]).norm()
    apart = torch.stack([(theirs - ours).norm() for theirs, ours in grads]).norm() / total
    worst = float((logits[0] - logits[1]).norm() / logits[0].norm())
    print(f"  relative difference of logits {worst:.1e}, of all gradients {float(apart):.1e}")
    if max(worst, float(apart)) > TOLERANCE:
        raise SystemExit("the two do not agree; no time is worth printing")


def bench(model: nn.Module, batch: dict[str, Tensor], repeats: int, *, train: bool) -> dict[str, list[float]]:
    """CPU seconds of both attentions, in turn."""
    model.train(train)

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            if train:
                model.zero_grad()
                model(**batch).loss.backward()
            else:
                with torch.inference_mode():
                    model(**batch)

        return lambda: (SWITCH[name](model), run())

    return interleave({name: step(name) for name in SWITCH}, repeats)


def bench_attention(model: nn.Module, batch: dict[str, Tensor], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of the attention of one layer alone, its projections included, forward and backward."""
    model.train()
    encoder = model.deberta.encoder
    size = model.config.hidden_size
    hidden, upstream = (torch.randn(*batch["input_ids"].shape, size) for _ in range(2))
    hidden.requires_grad_()

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            attention = encoder.layer[0].attention.self
            context, _ = attention(hidden, mask, relative_pos=distances, rel_embeddings=encoder.rel_embeddings.weight)
            context.backward(upstream)

        SWITCH[name](model)  # mask and distances are made once a step and not once a layer, so neither is timed
        mask, distances = encoder.get_attention_mask(batch["attention_mask"]), encoder.get_rel_pos(hidden)
        return lambda: (SWITCH[name](model), run())

    return interleave({name: step(name) for name in SWITCH}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1, help="of hidden states and attention in fine-tuning")
    parser.add_argument(
        "--padded", action="store_true", help="time batches with padding; those compared always have it"
    )
    parser.add_argument("--toy", action="store_true", help="a small model: every line of this in seconds")
    parser.add_argument("--plot", help="write a bar chart to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, 1 thread of {os.cpu_count()}, load {load:.1f}, dropout {args.dropout}")
    model = build(args.layers, args.dropout, toy=args.toy)
    panels = {}
    for text in args.shapes:
        batch_size, length = (int(part) for part in text.split("x"))
        vocab_size = model.config.vocab_size
        print(f"{text}, {args.layers} layers{', padded' if args.padded else ''}")
        check_equal(model, draw_batch((batch_size, length), vocab_size, padded=True))
        batch = draw_batch((batch_size, length), vocab_size, padded=args.padded)
        benches = {
            "inference": partial(bench, train=False),
            "fine-tuning": partial(bench, train=True),
            "attention of one layer alone, forward and backward": bench_attention,
        }
        for name, run in benches.items():
            print(f" {name}")
            seconds = run(model, batch, args.repeats)
            print_ratios(seconds, EAGER)
            panels[f"{name}, {text}"] = {label: statistics.median(values) for label, values in seconds.items()}
    if args.plot:
        draw_bars(args.plot, panels, "CPU seconds")


if __name__ == "__main__":
    main()
