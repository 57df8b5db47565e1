"""Saved under some shards and stages, resumed under others: the same state bit for bit, then the same losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from megadeberta.assembly import Assembly
from megadeberta.checkpoint import find_resumable
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.engine.state.optimizer_state import OptimizerState
from megadeberta.engine.state.save_load import load_checkpoint, save_checkpoint
from tests.distributed.checkpoint_toy import collectives, open_store, run_record
from tests.distributed.layouts import Layout, build, train_steps
from tests.ranks import run_ranks

SAVED_AFTER = 3
LAYOUTS = {
    "one": {"zero": 0, "micro_batch": 4},
    "data 2, ZeRO 3": {"data": 2, "zero": 3, "micro_batch": 1},
    "tensor 2, ZeRO 2": {"tensor": 2, "zero": 2, "micro_batch": 2},
    "tensor 2 x data 2, ZeRO 3": {"tensor": 2, "data": 2, "zero": 3, "micro_batch": 2},
    "tensor 4, ZeRO 1": {"tensor": 4, "zero": 1, "sequence_parallel": True},
    "pipeline 2": {"pipeline": 2, "zero": 1, "micro_batch": 1},
    "pipeline 2 x data 2": {"pipeline": 2, "data": 2, "zero": 1, "micro_batch": 1},
    "pipeline 2 x tensor 2": {"pipeline": 2, "tensor": 2, "zero": 1, "micro_batch": 2},
}
PAIRS = [
    ("one", "pipeline 2 x tensor 2"),
    ("pipeline 2 x tensor 2", "one"),
    ("pipeline 2 x tensor 2", "tensor 4, ZeRO 1"),
    ("pipeline 2 x data 2", "tensor 2, ZeRO 2"),
    ("tensor 2, ZeRO 2", "pipeline 2 x data 2"),
    ("tensor 2, ZeRO 2", "pipeline 2"),
    ("tensor 4, ZeRO 1", "pipeline 2 x tensor 2"),
    ("tensor 4, ZeRO 1", "data 2, ZeRO 3"),
    ("data 2, ZeRO 3", "tensor 4, ZeRO 1"),
    ("data 2, ZeRO 3", "pipeline 2"),
    ("tensor 2 x data 2, ZeRO 3", "one"),
    ("one", "tensor 2 x data 2, ZeRO 3"),
    ("pipeline 2", "tensor 2 x data 2, ZeRO 3"),
    ("pipeline 2", "pipeline 2 x data 2"),
]
COVERING = [PAIRS[i] for i in (2, 3, 8)]


class Outcome(NamedTuple):
    """Where a layout wrote what it held, and the (loss, norm) of the steps after."""

    folder: Path
    steps: list[tuple[float, float]]


def _go_on(assembly: Assembly, layout: Layout, root: Path, more: int) -> Outcome:
    ranks = collectives()
    state = OptimizerState(assembly.stepper.engine, assembly.parameters)
    run = run_record(ranks.world_size)
    folder = save_checkpoint(state, open_store(root), SAVED_AFTER, run=run, rank=ranks.rank, required=True)
    return Outcome(folder, train_steps(assembly, layout, range(SAVED_AFTER, SAVED_AFTER + more)))


def _save(rank: int, world_size: int, layout: Layout, root: Path, more: int) -> Outcome:
    assembly = build(layout)
    train_steps(assembly, layout, range(SAVED_AFTER))
    return _go_on(assembly, layout, root, more)


def _resume(rank: int, world_size: int, layout: Layout, source: Path, root: Path, more: int) -> Outcome:
    assembly = build(layout)
    point = find_resumable(source, collectives=collectives(), run=run_record(world_size))
    state = OptimizerState(assembly.stepper.engine, assembly.parameters)
    load_checkpoint(state, point, collectives=collectives())
    return _go_on(assembly, layout, root, more)


def _check(variant: str, pairs: Sequence[tuple[str, str]], root: Path, *, more: int) -> None:
    saved: dict[str, Outcome] = {}
    for number, (source, target) in enumerate(pairs):
        first, second = (Layout(variant, **LAYOUTS[name]) for name in (source, target))
        if source not in saved:
            folder = root / f"from-{number}"
            saved[source] = run_ranks(_save, first.topology.world_size, first, folder, more)[0]
        before = saved[source]
        into = root / f"to-{number}"
        args = (second, before.folder.parent, into, more)
        after = run_ranks(_resume, second.topology.world_size, *args)[0]
        assert_same_content(CheckpointContent(before.folder), CheckpointContent(after.folder))
        assert after.steps[0][0] == pytest.approx(before.steps[0][0], rel=1e-6), f"{source} -> {target}"
        np.testing.assert_allclose(after.steps, before.steps, rtol=1e-5, atol=1e-5, err_msg=f"{source} -> {target}")


def assert_same_content(first: CheckpointContent, second: CheckpointContent) -> None:
    """Weights, moments and numbers of updates, bit for bit."""
    assert set(first.names) == set(second.names)
    for kind in (WEIGHT, "exp_avg", "exp_avg_sq"):
        expected, found = dict(first.whole(kind)), dict(second.whole(kind))
        assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
    assert {name: first.updates(name) for name in first.names} == {name: second.updates(name) for name in first.names}


@pytest.mark.parametrize("variant", ["v3", "rtd-gdes"])
def test_shards_and_stages_resume_each_other(variant: str, tmp_path: Path) -> None:
    _check(variant, COVERING, tmp_path, more=2)


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["v1", "v2-conv", "v3", "rtd-gdes"])
def test_fourteen_pairs_resume_each_other_for_twenty_steps(variant: str, tmp_path: Path) -> None:
    _check(variant, PAIRS, tmp_path, more=20)
