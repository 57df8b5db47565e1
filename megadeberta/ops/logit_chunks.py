"""In how many passes the logits over a vocabulary are computed, so that they never exist all at once. No torch."""

CHUNK_ELEMENTS = 2**27
"""Logits of one chunk: 512 MiB in fp32. With one chunk its softmax is kept, with more each is recomputed."""


def rows_per_chunk(vocabulary: int) -> int:
    """Most rows whose logits over ``vocabulary`` ids exist at once; one at least."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def row_chunks(num_rows: int, vocabulary: int) -> list[slice]:
    """Rows in chunks of at most ``CHUNK_ELEMENTS`` logits; one empty chunk of no rows."""
    size = rows_per_chunk(vocabulary)
    return [slice(start, min(num_rows, start + size)) for start in range(0, max(1, num_rows), size)]
