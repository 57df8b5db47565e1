"""Saved under some shards and stages, resumed under others: the same state bit for bit, then the same losses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.layouts import Layout
from tests.distributed.resuming import Outcome, assert_same_content, resume_and_go_on, save_and_go_on
from tests.ranks import run_ranks

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


def _check(variant: str, pairs: Sequence[tuple[str, str]], root: Path, *, more: int) -> None:
    saved: dict[str, Outcome] = {}
    for number, (source, target) in enumerate(pairs):
        first, second = (Layout(variant, **LAYOUTS[name]) for name in (source, target))
        if source not in saved:
            folder = root / f"from-{number}"
            saved[source] = run_ranks(save_and_go_on, first.topology.world_size, first, folder, more)[0]
        before = saved[source]
        into = root / f"to-{number}"
        args = (second, before.folder.parent, into, more)
        after = run_ranks(resume_and_go_on, second.topology.world_size, *args)[0]
        assert_same_content(before.folder, after.folder)
        assert after.steps[0][0] == pytest.approx(before.steps[0][0], rel=1e-6), f"{source} -> {target}"
        np.testing.assert_allclose(after.steps, before.steps, rtol=1e-5, atol=1e-5, err_msg=f"{source} -> {target}")


@pytest.mark.parametrize("variant", ["v3", "rtd-gdes"])
def test_shards_and_stages_resume_each_other(variant: str, tmp_path: Path) -> None:
    _check(variant, COVERING, tmp_path, more=2)


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["v1", "v2-conv", "v3", "rtd-gdes"])
def test_fourteen_pairs_resume_each_other_for_twenty_steps(variant: str, tmp_path: Path) -> None:
    _check(variant, PAIRS, tmp_path, more=20)
