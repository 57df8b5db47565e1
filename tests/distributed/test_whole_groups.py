"""Gradients that are added, measured and clipped many at a time: as DeepSpeed does it one by one."""

import pytest
import torch

from megadeberta.engine import build as engine_build
from megadeberta.engine import whole_groups
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, build, train_steps
from tests.ranks import run_ranks

BLOCK = (("bf16", {"enabled": True}), ("data_types", {"grad_accum_dtype": "fp32"}), ("gradient_clipping", 0.1))
LAYOUT = Layout("rtd-gdes-decoupled", data=2, zero=1, micro_batch=1, more=BLOCK)


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
        trace = train_steps(assembly, LAYOUT, range(3))
        found.append(
            (trace, {name: tensor.numpy() for name, tensor in gather_weights(assembly.stepper.engine).items()})
        )
    return tuple(found)


def test_whole_groups_train_as_single_parameters() -> None:
    for (trace, weights), (other_trace, other_weights) in run_ranks(_train, LAYOUT.data):
        for (loss, norm), (other_loss, other_norm) in zip(trace, other_trace, strict=True):
            # The norm is a sum in another order, and clipping makes every step depend on it.
            assert other_loss == pytest.approx(loss, rel=1e-5)
            assert other_norm == pytest.approx(norm, rel=1e-5)
        # On the first rank alone.
        assert all(float(abs(weights[name] - other_weights[name]).max()) < 1e-5 for name in weights)


def test_gradients_that_follow_one_another_are_joined_up_to_a_size() -> None:
    a, b, c, d = (torch.ones(size) for size in (4, 3, 2, whole_groups._JOINED))
    found = whole_groups._neighbours([a, None, b, c, d], [4, 9, 3, 2, d.numel()])
    assert [(start, [g.numel() for g in run]) for start, run in found] == [(0, [4]), (13, [3, 2]), (18, [d.numel()])]
