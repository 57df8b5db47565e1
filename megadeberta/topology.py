"""Which rank does what: pure arithmetic on (pipeline, data, tensor) coordinates.

The order is DeepSpeed's (``runtime/pipe/topology.py`` ``PipeModelDataParallelTopology``): tensor-parallel ranks are
neighbours, then data-parallel ones, and pipeline stages are farthest apart.
"""

from dataclasses import dataclass

from megadeberta.errors import ParallelError


@dataclass(frozen=True)
class Coordinates:
    """The place of one rank: its pipeline stage, its share of the batch and its shard of the tensors."""

    stage: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Topology:
    """A job of ``pipeline * data * tensor`` ranks."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @classmethod
    def of_world(cls, world_size: int, *, pipeline: int, tensor: int) -> "Topology":
        """The topology whose data-parallel degree fills ``world_size`` ranks.

        Raises:
            ParallelError: the ranks are no multiple of ``pipeline * tensor``.
        """
        data, rest = divmod(world_size, pipeline * tensor)
        if rest or not data:
            raise ParallelError(
                f"parallel.pipeline={pipeline} x parallel.tensor={tensor} needs a multiple of {pipeline * tensor} "
                f"ranks, and there are {world_size}; start {max(1, data) * pipeline * tensor}"
            )
        return cls(pipeline, data, tensor)

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.pipeline * self.data * self.tensor

    def rank(self, place: Coordinates) -> int:
        """The rank at these coordinates."""
        return (place.stage * self.data + place.data) * self.tensor + place.tensor

    def coordinates(self, rank: int) -> Coordinates:
        """The coordinates of a rank."""
        rest, tensor = divmod(rank, self.tensor)
        stage, data = divmod(rest, self.data)
        return Coordinates(stage, data, tensor)

    @property
    def tensor_groups(self) -> list[list[int]]:
        """Ranks that hold the shards of the same layers for the same samples."""
        return [list(range(first, first + self.tensor)) for first in range(0, self.world_size, self.tensor)]

    @property
    def data_groups(self) -> list[list[int]]:
        """Ranks that hold the same parameters and see different samples; ZeRO divides its states among them."""
        return [
            [self.rank(Coordinates(stage, data, tensor)) for data in range(self.data)]
            for stage in range(self.pipeline)
            for tensor in range(self.tensor)
        ]
