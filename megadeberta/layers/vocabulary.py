"""How tensor-parallel ranks share the rows of the word table, and so the columns of the logits."""

from itertools import pairwise

VOCABULARY_UNIT = 8
"""Ranks are dealt the vocabulary in groups of this many rows: none is added to make shards equal."""


def vocabulary_rows(vocabulary: int, tensor: int) -> list[range]:
    """Rows of the word table that each of ``tensor`` ranks holds, in order and without a gap; the last may be short."""
    units = -(-vocabulary // VOCABULARY_UNIT)
    borders = [min(vocabulary, VOCABULARY_UNIT * (units * rank // tensor)) for rank in range(tensor + 1)]
    return [range(*pair) for pair in pairwise(borders)]


def largest_vocabulary_shard(vocabulary: int, tensor: int) -> int:
    """Rows of the fullest of ``tensor`` ranks."""
    return max(len(rows) for rows in vocabulary_rows(vocabulary, tensor))
