"""The CPU path against transformers' eager DebertaV2ForMaskedLM: one thread, one process, variants interleaved.

    python benchmarks/cpu_step.py [--shapes 4x128 2x512] [--repeats 5] [--layers 12] [--dropout 0] [--only step layer]

Same weights and inputs; loss and gradients are compared before anything is timed. Times are CPU seconds of this
process, so that other load on the machine weighs less; a figure is the median of the ratios of neighbouring runs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from megadeberta.config.model import ModelConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.convert.names import mlm_names
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.model.attention_backend import select_attention
from megadeberta.model.carry import RelativePositions
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel, mlm_specs
from megadeberta.observability.flops import flops_per_token
from megadeberta.ops.attention_mask import padding_mask
from megadeberta.ops.relative_position import rows_by_distance

MASK_RATE = 0.15
EAGER = "transformers eager"
GRADIENT_TOLERANCE = 1e-4  # two fp32 evaluations with other orders of summation, through all layers


@dataclass(frozen=True)
class Batch:
    """Random ids; ``labels`` are transformers' form of the masked positions and labels."""

    ids: Tensor  # [B, L]
    mask: Tensor  # [B, L]
    positions: Tensor  # [B, Q]
    targets: Tensor  # [B, Q]
    labels: Tensor  # [B, L], -100 = no target


def draw_batch(batch: int, length: int, vocabulary: int) -> Batch:
    clean = torch.randint(5, vocabulary - 100, (batch, length))
    count = round(MASK_RATE * length)
    positions = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(batch)])
    targets = clean.gather(1, positions)
    labels = torch.full_like(clean, -100).scatter_(1, positions, targets)
    ids = clean.scatter(1, positions, vocabulary - 100)
    return Batch(ids, torch.ones_like(ids), positions, targets, labels)


def build_models(layers: int, dropout: float) -> tuple[DebertaV2ForMaskedLM, dict[str, WholeModel]]:
    """transformers' model, ours with equal weights, and ours with the mask decoder that transformers does not have."""
    torch.manual_seed(0)
    theirs = DebertaV2ForMaskedLM(
        DebertaV2Config(
            vocab_size=128_100,
            hidden_size=768,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=3072,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=256,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
            layer_norm_eps=1e-7,
            legacy=False,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    sizes = {"num_hidden_layers": layers, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = ModelConfig(enhanced_mask_decoder=False, **sizes)
    names, state = mlm_names(config), theirs.state_dict()
    ours, lean = WholeModel(mlm_specs(config)), WholeModel(mlm_specs(config))
    with torch.no_grad():
        for model in (ours, lean):
            for name, parameter in model.named_parameters():
                parameter.copy_(state[names[name]])
    select_attention(lean, "cpu-lean", torch.device("cpu"))
    decoder = WholeModel(mlm_specs(ModelConfig(**sizes)))
    initialize(decoder, seed=0, std=0.02)
    return theirs, {"megadeberta": ours, "megadeberta, lean memory": lean, "megadeberta, mask decoder": decoder}


def their_step(model: DebertaV2ForMaskedLM, batch: Batch) -> float:
    model.zero_grad()
    loss = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    loss.backward()
    return loss.item()


def our_step(model: WholeModel, batch: Batch) -> float:
    model.zero_grad()
    terms, _ = model(batch.ids, batch.mask, batch.positions, batch.targets)
    loss_sum, count = terms["mlm_loss"]
    loss = loss_sum / count
    loss.backward()
    return loss.item()


def check_equal(theirs: DebertaV2ForMaskedLM, ours: WholeModel, batch: Batch) -> None:
    """Stop unless the losses and all gradients agree."""
    expected, found = their_step(theirs, batch), our_step(ours, batch)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = mlm_names(ModelConfig(num_hidden_layers=theirs.config.num_hidden_layers, enhanced_mask_decoder=False))
    worst = max(
        float((parameter.grad - gradients[names[name]]).norm() / gradients[names[name]].norm())
        for name, parameter in ours.named_parameters()
        if names[name] in gradients
    )
    print(f"  loss {found:.6f}, transformers {expected:.6f}; largest relative gradient difference {worst:.1e}")
    if abs(expected - found) > 1e-5 * abs(expected) or worst > GRADIENT_TOLERANCE:
        raise SystemExit("the two models do not agree; no time is worth printing")


def interleave(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every variant, run in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def report(seconds: dict[str, list[float]], baseline: str, extra: dict[str, str] | None = None) -> None:
    for name, values in seconds.items():
        ratios = [base / value for base, value in zip(seconds[baseline], values, strict=True)]
        note = (extra or {}).get(name, "")
        print(
            f"  {name:28s} {statistics.median(values):8.3f} s  {statistics.median(ratios):5.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f}){note}",
            flush=True,
        )


def gemm_rate() -> float:
    """Operations a second of a 2048^3 fp32 product on this thread, in CPU time."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = interleave({"product": lambda: left @ right}, 7)["product"]
    return 2 * 2048**3 / statistics.median(seconds)


def bench_step(shape: tuple[int, int], args: argparse.Namespace) -> None:
    """C1, C2 (step), C5 (step against the matrix products it needs), M2 (bytes kept)."""
    theirs, ours = build_models(args.layers, args.dropout)
    batch = draw_batch(*shape, 128_100)
    print(f"step without optimizer, {shape[0]}x{shape[1]}, {args.layers} layers, dropout {args.dropout}")
    if not args.dropout:
        check_equal(theirs, ours["megadeberta"], batch)
    variants = {EAGER: lambda: their_step(theirs, batch)}
    variants |= {name: (lambda model=model: our_step(model, batch)) for name, model in ours.items()}
    seconds = interleave(variants, args.repeats)
    rate, tokens = gemm_rate(), batch.ids.numel()
    floors = {
        name: flops_per_token(
            ModelConfig(num_hidden_layers=args.layers, enhanced_mask_decoder="decoder" in name),
            sequence_length=shape[1],
            mask_rate=MASK_RATE,
        )
        * tokens
        / rate
        for name in variants
    }
    multiples = {name: statistics.median(seconds[name]) / floors[name] for name in variants}
    report(seconds, EAGER, {name: f"  {multiple:.2f} x its matrix products" for name, multiple in multiples.items()})
    print(f"  (matrix products at {rate / 1e9:.0f} GFLOP/s)")
    if not args.dropout:
        for name, step in {EAGER: their_step, **dict.fromkeys(ours, our_step)}.items():
            model = theirs if name == EAGER else ours[name]
            with saved_bytes(model) as kept:
                step(model, batch)
            print(f"  {name:28s} keeps {kept() / tokens / args.layers / 1024:6.1f} KiB a token a layer, head included")


def bench_optimizer(shape: tuple[int, int], args: argparse.Namespace) -> None:
    """C4: the whole step with the optimizer of each side."""
    theirs, ours = build_models(args.layers, args.dropout)
    model, batch = ours["megadeberta"], draw_batch(*shape, 128_100)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5, foreach=True)
    our_optimizer = build_optimizer(model, OptimizerConfig(lr=1e-5), deepspeed_block={})
    print(f"step with optimizer, {shape[0]}x{shape[1]}, {args.layers} layers, dropout {args.dropout}")
    variants = {
        EAGER + " + AdamW": lambda: (their_step(theirs, batch), their_optimizer.step()),
        "megadeberta + fused AdamW": lambda: (our_step(model, batch), our_optimizer.step()),
    }
    report(interleave(variants, args.repeats), EAGER + " + AdamW")


def bench_layer(shape: tuple[int, int], args: argparse.Namespace) -> None:
    """C3: one attention layer with its projections and LayerNorm, forward and backward."""
    theirs, models = build_models(2, args.dropout)
    layer = theirs.deberta.encoder.layer[0].attention
    length = shape[1]
    hidden, table = torch.randn(*shape, 768, requires_grad=True), torch.randn(512, 768, requires_grad=True)
    upstream = torch.randn(*shape, 768)
    ones, rows = torch.ones(shape[0], 1, length, length), rows_by_distance(length, 256, 512)
    first, last = int(rows[0]), int(rows[-1])
    mask = padding_mask(torch.ones(*shape, dtype=torch.bool))

    def their_layer() -> tuple[Tensor, ...]:
        distances = build_relative_position(hidden, hidden, bucket_size=256, max_position=512)
        context = layer(hidden, ones, relative_pos=distances, rel_embeddings=table)[0]
        return torch.autograd.grad(context, [hidden, table], upstream)

    def our_layer(block: nn.Module) -> tuple[Tensor, ...]:
        relative = RelativePositions(table[first : last + 1], rows - first)
        context = block(hidden, block.attention.project_keys(hidden, relative), mask)
        return torch.autograd.grad(context, [hidden, table, *block.parameters()], upstream)[:2]

    models.pop("megadeberta, mask decoder")
    blocks = {name: model.get_submodule("layer.0.self_attention") for name, model in models.items()}
    print(f"attention layer, {shape[0]}x{length}, dropout {args.dropout}")
    if not args.dropout:
        pairs = zip(their_layer(), our_layer(blocks["megadeberta"]), strict=True)
        worst = max(float((a - b).norm() / a.norm()) for a, b in pairs)
        if worst > GRADIENT_TOLERANCE:
            raise SystemExit(f"the gradients differ by {worst:.1e}; no time is worth printing")

    def full_backward() -> None:
        for parameter in layer.parameters():
            parameter.grad = None
        distances = build_relative_position(hidden, hidden, bucket_size=256, max_position=512)
        context = layer(hidden, ones, relative_pos=distances, rel_embeddings=table)[0]
        torch.autograd.grad(context, [hidden, table, *layer.parameters()], upstream)

    variants = {EAGER: full_backward} | {n: (lambda block=block: our_layer(block)) for n, block in blocks.items()}
    report(interleave(variants, 2 * args.repeats), EAGER)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the storages that autograd keeps inside the block, each once, parameters left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []  # keeps addresses from being used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["4x128", "2x512"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--only", nargs="+", default=["layer", "step", "optimizer"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")
    benches = {"layer": bench_layer, "step": bench_step, "optimizer": bench_optimizer}
    for name in args.only:
        for shape in args.shapes:
            batch, length = (int(part) for part in shape.split("x"))
            benches[name]((batch, length), args)


if __name__ == "__main__":
    main()
