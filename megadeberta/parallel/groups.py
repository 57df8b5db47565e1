"""The process groups of a topology: made once, passed to whoever communicates."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from torch import distributed
from torch.distributed import ProcessGroup

from megadeberta.topology import Coordinates, Topology


@dataclass(frozen=True)
class Groups:
    """The groups that this rank is a member of.

    tensor: shards of the same layers for the same samples. data: the same parameters, other samples. host: all ranks,
    for tensors of the CPU; None where the default group takes those.
    """

    topology: Topology
    place: Coordinates
    tensor: ProcessGroup
    data: ProcessGroup
    host: ProcessGroup | None


def make_groups(topology: Topology, *, timeout_seconds: float) -> Groups:
    """Make all groups of the topology. Collective over the world: every rank calls it once, before it builds a model.

    A group that is the whole world is the default group.
    """
    rank = distributed.get_rank()
    assert topology.world_size == distributed.get_world_size()
    timeout = datetime.timedelta(seconds=timeout_seconds)
    world = distributed.group.WORLD
    assert world is not None
    made: dict[tuple[int, ...], ProcessGroup] = {tuple(range(topology.world_size)): world}

    def mine(groups: Sequence[Sequence[int]]) -> ProcessGroup:
        # Two axes may have the same groups, and every rank must create every group, in the same order.
        for ranks in map(tuple, groups):
            if ranks not in made:
                made[ranks] = distributed.new_group(list(ranks), timeout=timeout)
        return made[next(ranks for ranks in map(tuple, groups) if rank in ranks)]

    return Groups(
        topology,
        topology.coordinates(rank),
        tensor=mine(topology.tensor_groups),
        data=mine(topology.data_groups),
        host=None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo", timeout=timeout),
    )
