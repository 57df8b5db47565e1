"""Compiled layers train as plain ones under every layout, dropout on, and each layer is one graph."""

import pytest
from torch._dynamo.utils import counters

from megadeberta.model import compiled_layers
from tests.distributed.layouts import Layout, RankTrace, assert_equal, join_ranks, run_alone, train_rank
from tests.ranks import run_ranks

STEPS = 3
LAYOUTS = [
    Layout("rtd-gdes", pipeline=2, zero=1, micro_batch=2),
    Layout("v3", tensor=2, zero=2, sequence_parallel=True, recompute=True),
]
MORE_LAYOUTS = [
    Layout("v3", data=2, zero=2, micro_batch=1, recompute=True),
    Layout("v3", tensor=2, zero=1, micro_batch=2),
    Layout("v2-conv", tensor=2, zero=1, sequence_parallel=True),
]


def _train_compiled(rank: int, world_size: int, layout: Layout) -> tuple[RankTrace, int, dict[str, int]]:
    # What dynamo and autograd make of a layer is the question here, and C++ for every rank takes a minute.
    compiled_layers.BACKEND = "aot_eager"
    trace = train_rank(rank, world_size, layout, STEPS)
    return trace, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(each, marks=pytest.mark.campaign) for each in MORE_LAYOUTS)], ids=str
)
def test_compiled_layers_equal_plain_ones_under_a_layout(layout: Layout) -> None:
    compiled = Layout(**{**vars(layout), "compiled": True})
    ranks = run_ranks(_train_compiled, compiled.topology.world_size, compiled, timeout=240.0)
    assert_equal(join_ranks([trace for trace, _, _ in ranks]), run_alone(layout.variant, steps=STEPS))
    for _, graphs, breaks in ranks:
        assert breaks == {}
        assert 1 <= graphs <= 3, "the trial; a layer of each part"
