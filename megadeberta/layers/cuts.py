"""How tensor parallelism cuts each parameter: a table over global parameter names, without torch.

V vocabulary · T tensor-parallel ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

VOCABULARY_UNIT = 8
"""Tensor-parallel ranks are dealt the vocabulary in groups of this many rows: none is added to make shards equal."""

Cut = Literal["column", "row", "vocabulary"]
"""column: the outputs of a linear layer, dim 0 of its weight and its bias. row: its inputs, dim 1 of its weight; the
bias stays whole. vocabulary: dim 0, in shards that may differ by one unit."""

PLAN: tuple[tuple[str, Cut], ...] = (
    ("self_attention.attention.query_proj.weight", "column"),
    ("self_attention.attention.query_proj.bias", "column"),
    ("self_attention.attention.key_proj.weight", "column"),
    ("self_attention.attention.key_proj.bias", "column"),
    ("self_attention.attention.value_proj.weight", "column"),
    ("self_attention.attention.value_proj.bias", "column"),
    ("self_attention.attention.pos_key_proj.weight", "column"),
    ("self_attention.attention.pos_key_proj.bias", "column"),
    ("self_attention.attention.pos_query_proj.weight", "column"),
    ("self_attention.attention.pos_query_proj.bias", "column"),
    ("self_attention.dense.weight", "row"),
    ("feed_forward.up.weight", "column"),
    ("feed_forward.up.bias", "column"),
    ("feed_forward.down.weight", "row"),
    ("embeddings.word_embeddings.weight", "vocabulary"),
    ("embeddings.word_embeddings.base", "vocabulary"),
    ("embeddings.word_embeddings.delta", "vocabulary"),
    ("mlm_head.decoder.weight", "vocabulary"),
    ("mlm_head.decoder.bias", "vocabulary"),
)
"""The end of a parameter's name, and how it is cut; what is not listed is whole on every rank."""


@dataclass(frozen=True)
class ShardSlice:
    """The part of one parameter that one tensor-parallel rank holds: ``start .. stop`` of dimension ``dim``."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    dim: int
    start: int
    stop: int

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Of the part."""
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :])


def how_cut(name: str) -> Cut | None:
    """How the parameter of this global name is cut; None if it is whole on every rank."""
    for ending, cut in PLAN:
        if name == ending or name.endswith(f".{ending}"):
            return cut
    return None


def vocabulary_rows(vocabulary: int, tensor: int) -> list[range]:
    """Rows of the word table that each of ``tensor`` ranks holds, in order and without a gap; the last may be short."""
    units = -(-vocabulary // VOCABULARY_UNIT)
    borders = [min(vocabulary, VOCABULARY_UNIT * (units * rank // tensor)) for rank in range(tensor + 1)]
    return [range(*pair) for pair in pairwise(borders)]


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
