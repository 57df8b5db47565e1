"""One toy run under any layout: losses, gradient norms, validation and final parameters to compare.

    runs = run_layout(Layout("v3", tensor=2, data=2, zero=1, micro_batch=1))

Every batch, mask, sample, dropout draw and initial value is a function of global numbers, so all layouts agree.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor

from megadeberta.assembly import Assembly, assemble
from megadeberta.batch import Batch
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.step import Stepper
from megadeberta.layers.cuts import ShardSlice
from megadeberta.topology import Topology
from tests.ranks import run_ranks

GLOBAL_BATCH, LENGTH, SLOTS = 4, 16, 5
SEED = 5
LR = 2e-3
# Uneven shards: 9 units of rows, the last one of 3 rows.
BASE = {
    "vocab_size": 67,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "position_buckets": 4,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.1,
}
V1 = BASE | {
    "position_buckets": -1,
    "max_relative_positions": 12,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "key_bias": False,
    "position_biased_input": True,
    "enhanced_mask_decoder": False,
    "type_vocab_size": 2,
}


def _rtd(sharing: str, **changes: object) -> dict[str, object]:
    return {"name": "rtd", "rtd": {"embedding_sharing": sharing, "loss_weight": 10.0, "generator_layers": 2} | changes}


VARIANTS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "v1": (V1, {}),
    "v2-conv": (BASE | {"conv_kernel_size": 3}, {}),
    "v3": (BASE, {}),
    "v3-packed": (BASE, {}),
    "v2-conv-packed": (BASE | {"conv_kernel_size": 3}, {}),
    "rtd-gdes": (BASE, _rtd("gdes")),
    "rtd-es": (BASE, _rtd("es")),
    "rtd-nes": (BASE, _rtd("nes")),
    "rtd-gdes-v1": (V1, _rtd("gdes")),
    "rtd-decoupled": (BASE, _rtd("gdes", decoupled=True)),
    "ar": (BASE, {"name": "ar"}),
    "prefix": (BASE, {"name": "mlm_ar"}),
    "v3-base": ({}, {}),
}
LENGTHS = {"v3-base": 128}
"""Where it is not ``LENGTH``."""


@dataclass(frozen=True)
class Layout:
    """One cell of the matrix: a variant of ``VARIANTS`` and how the ranks share it."""

    variant: str
    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    zero: int = 0
    micro_batch: int = 4
    sequence_parallel: bool = False
    recompute: bool = False
    more: tuple[tuple[str, object], ...] = ()
    """Further entries of the deepspeed block."""
    batch: int = GLOBAL_BATCH

    def __str__(self) -> str:
        size = f"tp{self.tensor} pp{self.pipeline} dp{self.data} zero{self.zero} mb{self.micro_batch}"
        return f"{self.variant} {size}" + " sp" * self.sequence_parallel + " ac" * self.recompute

    @property
    def block(self) -> dict[str, object]:
        return {
            "train_batch_size": self.batch,
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": self.zero},
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            **dict(self.more),
        }

    @property
    def config(self) -> RunConfig:
        model, objective = VARIANTS[self.variant]
        packing = "documents" if self.variant.endswith("packed") else "none"
        length = LENGTHS.get(self.variant, LENGTH)
        return RunConfig.model_validate(
            {
                "name": "toy",
                "model": model,
                "objective": objective,
                "data": {"train": "-", "tokenizer": "-", "sequence_length": length, "packing": packing},
                "optimizer": {"lr": LR, "weight_decay": 0.01},
                "training": {"steps": 20, "seed": SEED, "output_dir": "-"},
                "parallel": {
                    "tensor": self.tensor,
                    "pipeline": self.pipeline,
                    "sequence_parallel": self.sequence_parallel,
                    "activation_checkpointing": self.recompute,
                    "timeout_seconds": 60.0,
                },
                "deepspeed": self.block,
            }
        )

    @property
    def configs(self) -> tuple[ModelConfig, ObjectiveConfig]:
        return self.config.model, self.config.objective

    @property
    def topology(self) -> Topology:
        return Topology(self.pipeline, self.data, self.tensor)


RankTrace = tuple[list[tuple[float, float]], float, dict[str, tuple[ShardSlice | None, Tensor]]]
"""(loss, norm) of each step, a validation loss, and what one rank holds of every parameter."""


@dataclass(frozen=True)
class Trace:
    """What a run did: per step, and at its end under global names. ``held_out``: a validation loss."""

    losses: list[float]
    norms: list[float]
    held_out: float
    parameters: dict[str, Tensor]


def run_layout(layout: Layout, steps: int = 20) -> Trace:
    """Train under the layout on gloo ranks; what several ranks hold is checked to be equal."""
    return join_ranks(run_ranks(train_rank, layout.topology.world_size, layout, steps, timeout=240.0))


def join_ranks(ranks: list[RankTrace]) -> Trace:
    """The trace of all ranks together."""
    steps, held_out, _ = ranks[0]
    whole: dict[str, Tensor] = {}
    for others, score, parameters in ranks:
        assert others == steps
        assert score == held_out
        for name, (part, tensor) in parameters.items():
            if part is None:
                # Not bit for bit: some CPU kernels round by the alignment of their input.
                assert torch.allclose(whole.setdefault(name, tensor), tensor, atol=1e-8), f"{name} differs"
                continue
            target = whole.setdefault(name, torch.full(part.shape, torch.nan))
            target.narrow(part.dim, part.start, part.stop - part.start).copy_(tensor)
    assert not any(tensor.isnan().any() for tensor in whole.values())
    return Trace([loss for loss, _ in steps], [norm for _, norm in steps], held_out, whole)


def train_rank(rank: int, world_size: int, layout: Layout, steps: int) -> RankTrace:
    """One rank of the run."""
    assembly = build(layout)
    trace = train_steps(assembly, layout, range(steps))
    last = global_batch(1001, layout.variant)
    held_out = [global_batch(1000, layout.variant), _rows(last, 0, 3)] if assembly.data_rank == 0 else []
    score = assembly.stepper.evaluate(held_out).loss
    return trace, score, local_parameters(assembly.stepper)


def train_steps(assembly: Assembly, layout: Layout, steps: Iterable[int]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    stepper, size = assembly.stepper, layout.micro_batch
    share = [
        (number * layout.data + assembly.data_rank) * size for number in range(layout.batch // (layout.data * size))
    ]
    trace = []
    for step in steps:
        whole = global_batch(step, layout.variant, size=layout.batch)
        batches = [_rows(whole, start, start + size) for start in share]
        targets, _ = stepper.share_counts(batches, stop_requested=False)
        result = stepper.train_step(batches, step=step, targets=targets, lr=LR)
        trace.append((result.loss, result.grad_norm))
    return trace


def build(layout: Layout) -> Assembly:
    """What `megadeberta train` assembles for this rank."""
    return assemble(layout.config, layout.topology, start_process_group(60.0))


def local_parameters(stepper: Stepper) -> dict[str, tuple[ShardSlice | None, Tensor]]:
    """What this rank holds of every parameter, ZeRO's own division undone."""
    held = {}
    for name, parameter in stepper.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            held[name] = (getattr(parameter, "shard", None), parameter.detach().clone())
    return held


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some sequences of the batch, with no more slots than they need, as the loader cuts them."""
    rows = {name: tensor[start:stop] for name, tensor in batch.items()}
    slots = int((rows["masked_labels"] != 0).sum(1).max())
    return rows | {name: rows[name][:, :slots] for name in ("masked_positions", "masked_labels")}


def global_batch(step: int, variant: str, *, size: int = GLOBAL_BATCH) -> Batch:
    """``size`` sequences with different lengths and numbers of targets; some slots are empty."""
    generator = torch.Generator().manual_seed(1000 + step)
    length, vocabulary = LENGTHS.get(variant, LENGTH), VARIANTS[variant][0].get("vocab_size", 128_000)
    slots = SLOTS * length // LENGTH
    ids = torch.randint(4, vocabulary, (size, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (size, 1), generator=generator)
    mask = torch.arange(length) < lengths
    ids = ids * mask
    positions = torch.stack([torch.randperm(length // 2, generator=generator)[:slots] for _ in range(size)])
    used = torch.arange(slots) < torch.randint(1, slots + 1, (size, 1), generator=generator)
    labels, positions = ids.gather(1, positions) * used, positions * used
    batch = {
        "input_ids": ids.scatter(1, positions, torch.where(used, 3, ids[:, :1])),
        "attention_mask": mask.long(),
        "masked_positions": positions,
        "masked_labels": labels,
        "sample_numbers": torch.arange(size) + (step << 32),
    }
    if variant in ("ar", "prefix"):
        prefix = [LENGTH, 3, LENGTH, 0] if variant == "prefix" else [3, 0, 6, 0]
        batch["prefix_lengths"] = torch.tensor(prefix * (size // len(prefix)))
    if variant.endswith("packed"):
        border = torch.randint(3, LENGTH // 2, (size, 1), generator=generator)
        batch["document_starts"] = torch.where(torch.arange(LENGTH) < border, 0, border)
    return batch
