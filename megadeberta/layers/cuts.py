"""How tensor parallelism divides each parameter into shards: by what the kinds of layers say of theirs.

V vocabulary · T tensor-parallel ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megadeberta.layers.catalogue import KINDS
from megadeberta.layers.layer import Cut
from megadeberta.layers.vocabulary import vocabulary_rows


@dataclass(frozen=True)
class ShardSlice:
    """The shard of one parameter that one tensor-parallel rank holds: ``start .. stop`` of dimension ``dim``."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    dim: int
    start: int
    stop: int

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Of the shard."""
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :])


def how_cut(name: str) -> Cut | None:
    """How the parameter of this global name is cut; None if it is whole on every rank."""
    for kind in KINDS.values():
        for ending, cut in kind.cuts.items():
            if name == ending or name.endswith(f".{ending}"):
                return cut
    return None


def shard_slice(name: str, shape: Sequence[int], *, tensor: int, rank: int) -> ShardSlice | None:
    """What tensor-parallel rank ``rank`` of ``tensor`` holds of a parameter of this whole shape.

    None if the parameter is whole on every rank.
    """
    cut = how_cut(name)
    if cut is None or tensor == 1:
        return None
    if cut == "vocabulary":
        rows = vocabulary_rows(shape[0], tensor)[rank]
        return ShardSlice(tuple(shape), 0, rows.start, rows.stop)
    dim = 1 if cut == "row" else 0
    size, rest = divmod(shape[dim], tensor)
    assert rest == 0, f"{name} {tuple(shape)} is not divisible by {tensor}; validate_run checks this"
    return ShardSlice(tuple(shape), dim, rank * size, (rank + 1) * size)
