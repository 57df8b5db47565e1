"""One toy run under any layout: losses, gradient norms, validation and final parameters to compare.

    runs = run_layout(Layout("v3", tensor=2, data=2, zero=1, micro_batch=1))

Every batch, mask, sample, dropout draw and initial value is a function of global numbers, so all layouts agree.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import deepspeed
import pytest
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
from tests.models import (
    INPUT_POSITIONS,
    V1,
    masked_batch,
    pack_two,
    read_left_to_right,
    run_config,
    tiny_rtd,
    tiny_v2,
    tiny_v3,
)
from tests.ranks import run_ranks

GLOBAL_BATCH, LENGTH, SLOTS = 4, 16, 5
SEED = 5
LR = 2e-3
CLOSE = 1e-5
"""fp32 with another order of summation, amplified a little by AdamW over 20 steps."""
# Uneven shards: 9 units of rows, the last one of 3 rows.
SIZES = {
    "vocab_size": 67,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "position_buckets": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
    "dropout": 0.1,
}
_V1 = tiny_v3(**SIZES | V1 | INPUT_POSITIONS | {"max_relative_positions": 12})
_V2 = tiny_v2(**SIZES)
_V3 = tiny_v3(**SIZES)
_NO_DECODER = _V3.model_copy(update={"enhanced_mask_decoder": False})
_MLM = ObjectiveConfig()


def _rtd(sharing: str, **changes: object) -> ObjectiveConfig:
    return tiny_rtd(sharing, loss_weight=10.0, **changes)


VARIANTS: dict[str, tuple[ModelConfig, ObjectiveConfig]] = {
    "v1": (_V1, _MLM),
    "v2-conv": (_V2, _MLM),
    "v3": (_V3, _MLM),
    "v3-packed": (_V3, _MLM),
    "v2-conv-packed": (_V2, _MLM),
    "rtd-gdes": (_V3, _rtd("gdes")),
    "rtd-es": (_V3, _rtd("es")),
    "rtd-nes": (_V3, _rtd("nes")),
    "rtd-gdes-narrow": (_NO_DECODER, _rtd("gdes", generator_hidden_size=_V3.hidden_size // 2)),
    "rtd-nes-narrow": (_V3, _rtd("nes", generator_hidden_size=_V3.hidden_size // 2)),
    "rtd-gdes-v1": (_V1, _rtd("gdes")),
    "rtd-gdes-decoupled": (_V3, _rtd("gdes", decoupled=True)),
    "rtd-nes-decoupled": (_V3, _rtd("nes", decoupled=True)),
    "ar": (_V3, ObjectiveConfig(name="ar")),
    "prefix": (_V3, ObjectiveConfig(name="mlm_ar")),
    "v3-base": (ModelConfig(), _MLM),
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
    compiled: bool = False
    more: tuple[tuple[str, object], ...] = ()
    """Further entries of the deepspeed block."""
    batch: int = GLOBAL_BATCH
    lr: float = LR
    discriminator_lr: float | None = None
    seed: int = SEED
    skip_limit: int = 0
    optimizer: tuple[tuple[str, object], ...] = ()
    """Further entries of the optimizer section."""

    ema_decay: float | None = None
    part: str = "both"
    batch_stages: tuple[tuple[int, int], ...] = ()
    """Steps and sequences, see ``training.batch_stages``."""

    def __str__(self) -> str:
        size = f"tp{self.tensor} pp{self.pipeline} dp{self.data} zero{self.zero} mb{self.micro_batch}"
        more = "".join(f" {name}" for name, _ in self.more)
        return (
            f"{self.variant} {size}"
            + " sp" * self.sequence_parallel
            + " ac" * self.recompute
            + " compiled" * self.compiled
            + more
        )

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
        return run_config(
            model=model,
            objective=objective,
            data={"sequence_length": LENGTHS.get(self.variant, LENGTH), "packing": packing},
            optimizer={"lr": self.lr, "discriminator_lr": self.discriminator_lr, "weight_decay": 0.01}
            | dict(self.optimizer),
            training={
                "steps": 20,
                "seed": self.seed,
                "ema_decay": self.ema_decay,
                "part": self.part,
                "batch_stages": [{"steps": steps, "sequences": sequences} for steps, sequences in self.batch_stages],
                "compile": "layers" if self.compiled else "none",
            },
            parallel={
                "tensor": self.tensor,
                "pipeline": self.pipeline,
                "sequence_parallel": self.sequence_parallel,
                "activation_checkpointing": self.recompute,
                "timeout_seconds": 60.0,
            },
            numerics={"skip_limit": self.skip_limit},
            deepspeed=self.block,
        )

    @property
    def configs(self) -> tuple[ModelConfig, ObjectiveConfig]:
        return self.config.model, self.config.objective

    @property
    def topology(self) -> Topology:
        return Topology(self.pipeline, self.data, self.tensor)


RankTrace = tuple[list[tuple[float, float]], dict[str, float], dict[str, tuple[ShardSlice | None, Tensor]]]
"""(loss, norm) of each step, validation loss and terms, and what one rank holds of every parameter."""


@dataclass(frozen=True)
class Trace:
    """What a run did: per step, and at its end under global names. ``held_out``: validation loss and terms."""

    losses: list[float]
    norms: list[float]
    held_out: dict[str, float]
    parameters: dict[str, Tensor]


def run_layout(layout: Layout, steps: int = 20) -> Trace:
    """Train under the layout on gloo ranks; what several ranks hold is checked to be equal."""
    return join_ranks(run_ranks(train_rank, layout.topology.world_size, layout, steps, timeout=240.0))


@functools.cache
def run_alone(variant: str, batch: int = GLOBAL_BATCH, *, steps: int = 20) -> Trace:
    """The same run in one process with one large micro batch: what every layout must equal. Trained once."""
    return run_layout(Layout(variant, micro_batch=batch, batch=batch), steps)


def assert_equal(found: Trace, expected: Trace) -> None:
    """Every step, the validation and every parameter."""
    assert found.losses == pytest.approx(expected.losses, abs=CLOSE, rel=CLOSE)
    assert found.norms == pytest.approx(expected.norms, abs=CLOSE, rel=CLOSE)
    assert found.held_out == pytest.approx(expected.held_out, abs=CLOSE)
    assert found.parameters.keys() == expected.parameters.keys()
    apart = {name: float((found.parameters[name] - p).abs().max()) for name, p in expected.parameters.items()}
    assert max(apart.values()) < CLOSE, sorted(apart.items(), key=lambda item: -item[1])[:5]


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
    held_out = [global_batch(1000, layout.variant), rows(last, 0, 3)] if assembly.data_rank == 0 else []
    result = assembly.stepper.evaluate(held_out)
    return trace, {"loss": result.loss, **result.terms.means}, local_parameters(assembly.stepper)


def train_steps(assembly: Assembly, layout: Layout, steps: Iterable[int]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    stepper, trace = assembly.stepper, []
    for step in steps:
        batches = micro_batches(layout, step, assembly.data_rank)
        targets, _ = stepper.share_counts(batches)
        result = stepper.train_step(batches, step=step, targets=targets, lr=layout.lr)
        trace.append((result.loss, result.grad_norm))
    return trace


def build(layout: Layout, *, loads_checkpoint: bool = False) -> Assembly:
    """What `megadeberta train` assembles for this rank."""
    device = start_process_group(60.0)
    return assemble(layout.config, layout.topology, device, loads_checkpoint=loads_checkpoint)


def local_parameters(stepper: Stepper) -> dict[str, tuple[ShardSlice | None, Tensor]]:
    """What this rank holds of every parameter, ZeRO's own division undone."""
    held = {}
    for name, parameter in stepper.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            held[name] = (getattr(parameter, "shard", None), parameter.detach().clone())
    return held


def micro_batches(layout: Layout, step: int, data_rank: int) -> list[Batch]:
    """Those of a step that one data-parallel rank computes, dealt out as the loader does."""
    sequences, size = layout.config.batches.at(step), layout.micro_batch
    batch = global_batch(step, layout.variant, size=sequences)
    numbers = range(data_rank, sequences // size, layout.data)
    return [rows(batch, number * size, (number + 1) * size) for number in numbers]


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some sequences of the batch, with no more slots than they need, as the loader cuts them."""
    some = {name: tensor[start:stop] for name, tensor in batch.items()}
    slots = int((some["masked_labels"] != 0).sum(1).max())
    return some | {name: some[name][:, :slots] for name in ("masked_positions", "masked_labels")}


def global_batch(step: int, variant: str, *, size: int = GLOBAL_BATCH) -> Batch:
    """``size`` sequences with different lengths and numbers of targets; some slots are empty."""
    length = LENGTHS.get(variant, LENGTH)
    slots = SLOTS * length // LENGTH
    batch = masked_batch(VARIANTS[variant][0], samples=size, length=length, slots=slots, step=step)
    if variant in ("ar", "prefix"):
        return read_left_to_right(batch, *((LENGTH, 3, LENGTH, 0) if variant == "prefix" else (3, 0, 6, 0)))
    if variant.endswith("packed"):
        return pack_two(batch, *(3 + (5 * step + 3 * row) % (LENGTH // 2 - 3) for row in range(size)))
    return batch
