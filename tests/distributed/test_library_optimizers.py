"""Muon, LAMB and StableAdamW look at whole tensors: no layout may show, and checkpoints resume under any."""

from pathlib import Path

import numpy as np
import pytest

from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.config.training import RULES, OptimizerName
from megadeberta.layers.optimizer_rules import rule_of
from tests.distributed.layouts import Layout, assert_equal, run_layout
from tests.distributed.resuming import resume_and_go_on, save_and_go_on
from tests.ranks import run_ranks

STEPS = 4
TENSOR_AND_DATA = {"tensor": 2, "data": 2, "zero": 1, "micro_batch": 2}
PIPELINE = {"pipeline": 2, "zero": 1, "micro_batch": 1}
LAYOUTS = (
    {"data": 2, "zero": 1, "micro_batch": 1},
    {"data": 2, "zero": 2, "micro_batch": 2},
    {"tensor": 2},
    {"tensor": 4, "zero": 1, "sequence_parallel": True},
    {"pipeline": 2, "data": 2, "zero": 1, "micro_batch": 1},
    {"pipeline": 2, "tensor": 2, "zero": 1, "micro_batch": 2},
    TENSOR_AND_DATA,
    PIPELINE,
)
NAMES: tuple[OptimizerName, ...] = ("muon", "lamb", "stable_adamw")


def _layout(name: str, variant: str = "v3", **sizes: object) -> Layout:
    return Layout(variant, optimizer=(("name", name),), **sizes)


@pytest.mark.parametrize("name", ["muon", "lamb"])
def test_updates_of_whole_tensors_do_not_depend_on_the_layout(name: str) -> None:
    assert_equal(run_layout(_layout(name, **TENSOR_AND_DATA), STEPS), run_layout(_layout(name), STEPS))


def _states(folder: Path, name: OptimizerName) -> dict[str, np.ndarray]:
    """Of every parameter its weight and what its rule keeps."""
    content, found = CheckpointContent(folder), {}
    for parameter, weight in content.whole():
        found[f"{WEIGHT}/{parameter}"] = weight
        for moment in RULES[rule_of(parameter, name)].moments:
            found[f"{moment}/{parameter}"] = values = np.empty(weight.size, dtype=np.float32)
            content.read(moment, Fragment(name=parameter, shape=weight.shape, start=0, stop=weight.size), values)
    return found


def _check_resume(name: OptimizerName, source: dict[str, object], target: dict[str, object], root: Path) -> None:
    first, second = _layout(name, **source), _layout(name, **target)
    before = run_ranks(save_and_go_on, first.topology.world_size, first, root / "from", 2)[0]
    after = run_ranks(resume_and_go_on, second.topology.world_size, second, before.folder.parent, root / "to", 2)[0]
    expected, found = _states(before.folder, name), _states(after.folder, name)
    assert expected.keys() == found.keys()
    assert [key for key, values in expected.items() if not np.array_equal(values, found[key])] == []
    np.testing.assert_allclose(after.steps, before.steps, rtol=1e-5, atol=1e-5)


def test_muon_resumes_under_another_layout_bit_for_bit(tmp_path: Path) -> None:
    _check_resume("muon", TENSOR_AND_DATA, PIPELINE, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["v3", "rtd-gdes"])
@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_equals_one_process(name: str, sizes: dict[str, object], variant: str) -> None:
    assert_equal(run_layout(_layout(name, variant, **sizes)), run_layout(_layout(name, variant)))


@pytest.mark.campaign
@pytest.mark.parametrize("source", range(len(LAYOUTS)))
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_resumes_in_the_next(name: OptimizerName, source: int, tmp_path: Path) -> None:
    _check_resume(name, LAYOUTS[source], LAYOUTS[(source + 3) % len(LAYOUTS)], tmp_path)
