"""Gradients that are added, measured and clipped many at a time: as DeepSpeed does it one by one."""

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

from megadeberta.engine import build as engine_build
from megadeberta.engine import whole_groups
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, build, train_steps
from tests.ranks import run_ranks

BLOCK = (("bf16", {"enabled": True}), ("data_types", {"grad_accum_dtype": "fp32"}), ("gradient_clipping", 0.1))
LAYOUT = Layout("rtd-gdes-decoupled", zero=1, micro_batch=1, more=BLOCK)


def _train(rank: int, world_size: int) -> tuple:
    """Three steps one by one and with whole groups: (losses and norms, weights) of both."""
    found = []
    for joined in (0, 700):  # some parameters together, others alone
        whole_groups._JOINED = joined
        if not joined:
            engine_build.work_on_whole_groups = lambda optimizer: None
        else:
            engine_build.work_on_whole_groups = whole_groups.work_on_whole_groups
        assembly = build(LAYOUT)
        assert isinstance(assembly.stepper.engine.optimizer, BF16_Optimizer)
        trace = train_steps(assembly, LAYOUT, range(3))
        found.append(
            (trace, {name: tensor.numpy() for name, tensor in gather_weights(assembly.stepper.engine).items()})
        )
    return tuple(found)


def test_whole_groups_train_as_single_parameters() -> None:
    (trace, weights), (other_trace, other_weights) = run_ranks(_train, 1)[0]
    for (loss, norm), (other_loss, other_norm) in zip(trace, other_trace, strict=True):
        # The norm is a sum in another order, and clipping makes every step depend on it.
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-5)
    assert max(float(abs(weights[name] - other_weights[name]).max()) for name in weights) < 1e-5


def _norms(rank: int, world_size: int, layout: Layout) -> list[tuple[float, float]]:
    """Of each step, as the engine took it and as DeepSpeed takes it."""
    found = []
    assembly = build(layout)
    optimizer = assembly.stepper.engine.optimizer
    ours = optimizer.scaled_global_norm

    def both() -> torch.Tensor:
        found.append((float(ours()), float(type(optimizer).scaled_global_norm(optimizer))))
        return ours()

    optimizer.scaled_global_norm = both
    train_steps(assembly, layout, range(2))
    return found


@pytest.mark.parametrize("zero", [1, 2])
def test_the_norm_of_partitions_is_that_of_the_parameters(zero: int) -> None:
    layout = Layout("v3", data=2, zero=zero, micro_batch=1, more=BLOCK)
    first, second = run_ranks(_norms, 2, layout)
    assert first == second and len(first) == 2
    assert all(ours == pytest.approx(theirs, rel=1e-6) for ours, theirs in first)


def test_gradients_that_follow_one_another_are_joined_up_to_a_size() -> None:
    a, b, c, d = (torch.ones(size) for size in (4, 3, 2, whole_groups._JOINED))
    found = whole_groups._neighbours([a, None, b, c, d], [4, 9, 3, 2, d.numel()])
    assert [(start, [g.numel() for g in run]) for start, run in found] == [(0, [4]), (13, [3, 2]), (18, [d.numel()])]
