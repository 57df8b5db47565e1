"""Ranks and coordinates."""

import pytest
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from hypothesis import given
from hypothesis import strategies as st

from megadeberta.errors import ParallelError
from megadeberta.topology import Topology

SIZES = st.integers(1, 4)


@given(pipeline=SIZES, data=SIZES, tensor=SIZES)
def test_ranks_and_groups_are_those_of_deepspeed(pipeline: int, data: int, tensor: int) -> None:
    ours = Topology(pipeline, data, tensor)
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    for rank in range(ours.world_size):
        place = ours.coordinates(rank)
        assert theirs.get_rank(pipe=place.stage, data=place.data, model=place.tensor) == rank == ours.rank(place)
    for axis, groups in (("data", ours.data_groups), ("model", ours.tensor_groups)):
        # DeepSpeed has no groups along an axis of size one.
        assert theirs.get_axis_comm_lists(axis) == groups


def test_a_world_that_no_data_parallel_degree_fills_is_refused() -> None:
    with pytest.raises(ParallelError, match=r"pipeline=2 x parallel.tensor=4 needs a multiple of 8 ranks.*are 12.*8"):
        Topology.of_world(12, pipeline=2, tensor=4)
    assert Topology.of_world(24, pipeline=2, tensor=4).data == 3
