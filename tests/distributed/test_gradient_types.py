"""In which type gradients are added up, over micro batches and over ranks; and that overlapping changes no bit."""

from collections.abc import Mapping
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, distributed, nn

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.engine.process_group import start_process_group
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.recipe import resolved
from megadeberta.model.whole import WholeModel
from megadeberta.topology import Topology
from tests.distributed.layouts import Layout, Trace, run_layout
from tests.models import masked_batch, run_config, tiny_v3
from tests.ranks import run_ranks

RANKS, ACCUMULATION = 2, 8
MODEL = tiny_v3(num_hidden_layers=2)
ADAM = OptimizerConfig(lr=1e-3)
IN_BF16 = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
BUCKET = 4000
"""Elements: several buckets in a model of 11 000, and a word table that fits into none."""


def _recipe(stage: int, **block: Any) -> RunConfig:
    """A bf16 recipe, resolved for two ranks."""
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    sizes = {"train_batch_size": RANKS * ACCUMULATION, "train_micro_batch_size_per_gpu": 1}
    config = run_config(model=MODEL, deepspeed={**sizes, "bf16": {"enabled": True}, "zero_optimization": zero, **block})
    return resolved(config, Topology(pipeline=1, data=RANKS, tensor=1))


def _model() -> WholeModel:
    model = WholeModel(list_layers(MODEL, ObjectiveConfig()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model


def _run_backwards(engine: deepspeed.DeepSpeedEngine, rank: int, *, step: int = 0) -> None:
    """All micro batches of a step; the update is the caller's."""
    for number in range(ACCUMULATION):
        batch = masked_batch(MODEL, samples=1, step=100 * step + 10 * number + rank)
        loss = 1.0 * engine(**batch)[0]["mlm_loss"][0]  # DeepSpeed divides what it returned by the accumulation steps
        engine.backward(loss, scale_wrt_gas=False)
        if number < ACCUMULATION - 1:
            engine.step()


# Over micro batches


class _Sums:
    """The gradients of every backward pass, added up in float64."""

    def __init__(self, model: nn.Module) -> None:
        self.of: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._add(name, p.grad))

    def _add(self, name: str, gradient: Tensor) -> None:
        self.of[name] = self.of.get(name, 0) + gradient.double()

    def mean_over_ranks(self) -> dict[str, Tensor]:
        for total in self.of.values():
            distributed.all_reduce(total)
        return {name: total / RANKS for name, total in self.of.items()}


def _full_gradients(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    return {name: safe_get_full_grad(p).double() for name, p in engine.module.named_parameters()}


def _apart(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Relative L2 distance of all gradients together."""
    error = sum(float((found[name] - value.view_as(found[name])).square().sum()) for name, value in exact.items())
    return (error / sum(float(value.square().sum()) for value in exact.values())) ** 0.5


def _accumulation_errors(rank: int, world_size: int) -> dict[int, tuple[float, float]]:
    """By ZeRO stage: distance from the exact sum, as resolved and in bf16."""
    start_process_group(60.0)
    found = {}
    for stage in (1, 2, 3):
        model = _model()
        sums = _Sums(model)
        engine = build_engine(model, ADAM, block=_recipe(stage).deepspeed, timeout_seconds=60.0)
        _run_backwards(engine, rank)
        wide, exact = _full_gradients(engine), sums.mean_over_ranks()
        engine.destroy()
        engine = build_engine(_model(), ADAM, block=_recipe(stage, **IN_BF16).deepspeed, timeout_seconds=60.0)
        _run_backwards(engine, rank)
        found[stage] = _apart(wide, exact), _apart(_full_gradients(engine), exact)
        engine.destroy()
    return found


def test_eight_micro_batches_on_two_ranks_add_up_as_exactly_as_fp32_does() -> None:
    for stage, (wide, narrow) in run_ranks(_accumulation_errors, RANKS, timeout=120.0)[0].items():
        assert wide < 1e-6, f"stage {stage}"
        # What bf16 sums lose: so the bound above can be missed. Stage 3 reduces before it adds up.
        assert narrow > 2e-3, f"stage {stage}"


# Over ranks


def _reduced_types(rank: int, world_size: int) -> dict[tuple[int, str], tuple[set[torch.dtype], int]]:
    """Types of what a step reduces over the ranks, and how many elements; counts and norms left out."""
    seen: list[Tensor] = []

    def spy(name: str, argument: str, place: int) -> None:
        real = getattr(distributed, name)

        def call(*args: Any, **options: Any) -> Any:
            seen.append(options[argument] if argument in options else args[place])
            return real(*args, **options)

        setattr(distributed, name, call)

    spy("all_reduce", "tensor", 0)
    spy("reduce_scatter_tensor", "input", 1)
    start_process_group(60.0)  # DeepSpeed keeps what it finds here
    found = {}
    blocks = [(stage, name, more) for stage in (1, 2, 3) for name, more in (("default", {}), ("bf16", IN_BF16))]
    after = {"zero_optimization": {"stage": 1, "overlap_comm": False}}
    for stage, name, more in [(0, "default", {}), (1, "after the backward pass", after), *blocks]:
        engine = build_engine(_model(), ADAM, block=_recipe(stage, **more).deepspeed, timeout_seconds=60.0)
        seen.clear()
        _run_backwards(engine, rank)
        gradients = [tensor for tensor in seen if tensor.numel() > 1]
        found[stage, name] = {tensor.dtype for tensor in gradients}, sum(tensor.numel() for tensor in gradients)
        engine.destroy()
    return found


def test_gradients_are_reduced_in_fp32_unless_the_recipe_says_bf16() -> None:
    count = sum(parameter.numel() for parameter in _model().parameters())
    for (stage, name), (types, elements) in run_ranks(_reduced_types, RANKS, timeout=120.0)[0].items():
        assert types == {torch.bfloat16 if name == "bf16" else torch.float32}, f"stage {stage}, {name}"
        reductions = ACCUMULATION if stage > 1 else 1
        assert elements == pytest.approx(count * reductions, rel=0.01), f"stage {stage}, {name}"


# What may change no bit


def _with_both_optimizers(rank: int, world_size: int) -> tuple[list[str], bool]:
    """Parameters after three updates by the BF16_Optimizer, and by the ZeRO optimizer."""
    start_process_group(60.0)
    trained, names = [], []
    for overlap in (False, True):
        zero = {"stage": 1, "overlap_comm": overlap, "reduce_bucket_size": BUCKET}
        config = _recipe(1, zero_optimization=zero, gradient_clipping=1.0)
        assert config.engine.has_bf16_optimizer is not overlap
        engine = build_engine(_model(), ADAM, block=config.deepspeed, timeout_seconds=60.0)
        for step in range(3):
            _run_backwards(engine, rank, step=step)
            engine.step()
        names.append(type(engine.optimizer).__name__)
        trained.append(list(engine.module.parameters()))
    return names, all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_zero_1_in_bf16_overlaps_with_the_bits_of_deepspeeds_bf16_optimizer() -> None:
    names, are_equal = run_ranks(_with_both_optimizers, RANKS)[0]
    assert names == ["BF16_Optimizer", "DeepSpeedZeroOptimizer"]
    assert are_equal


@pytest.mark.parametrize(("stage", "variant"), [(1, "rtd-gdes-decoupled"), (2, "v3"), (3, "v3")])
def test_overlapping_changes_no_bit(stage: int, variant: str) -> None:
    def run(overlap: bool) -> Trace:
        zero = {"stage": stage, "reduce_bucket_size": BUCKET, "overlap_comm": overlap}
        layout = Layout(variant, data=2, zero=stage, micro_batch=1, more=(("zero_optimization", zero),))
        return run_layout(layout, steps=3)

    plain, overlapped = run(overlap=False), run(overlap=True)
    assert overlapped.losses == plain.losses
    assert overlapped.norms == plain.norms
    assert {name for name, p in plain.parameters.items() if not torch.equal(p, overlapped.parameters[name])} == set()
