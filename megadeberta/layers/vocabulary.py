"""How tensor-parallel ranks share the rows of the word table, and so the columns of the logits."""

from itertools import pairwise

VOCABULARY_UNIT = 8
"""Ranks are dealt the vocabulary in groups of this many rows: none is added to make shards equal."""

VOCABULARY_MULTIPLE = 128
"""Rows of a word table whose size is chosen here: whole tiles of tensor cores, on each of up to 16 ranks too."""


def rounded_vocabulary(needed: int) -> int:
    """Rows for ``needed`` ids. Does not depend on the layout, so that a run may resume under another one."""
    return -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def vocabulary_rows(vocabulary: int, tensor: int) -> list[range]:
    """Rows of the word table that each of ``tensor`` ranks holds, in order and without a gap; the last may be short."""
    units = -(-vocabulary // VOCABULARY_UNIT)
    borders = [min(vocabulary, VOCABULARY_UNIT * (units * rank // tensor)) for rank in range(tensor + 1)]
    return [range(*pair) for pair in pairwise(borders)]


def largest_vocabulary_shard(vocabulary: int, tensor: int) -> int:
    """Rows of the fullest of ``tensor`` ranks."""
    return max(len(rows) for rows in vocabulary_rows(vocabulary, tensor))
