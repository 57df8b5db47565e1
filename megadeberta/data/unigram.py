"""The loss of a model that knows only how often each piece occurs: what a masked-language model must beat."""

import numpy as np

from megadeberta.data.indexed import TokenShard

TOKENS_READ = 20_000_000
"""Tokens taken from the start of each shard; frequencies of pieces are settled long before."""


def unigram_cross_entropy(train: TokenShard, valid: TokenShard, *, num_pieces: int) -> float:
    """Nats per token of ``valid`` under the piece frequencies of ``train``, with one added to every count."""
    counts = _piece_counts(train, num_pieces) + 1.0
    log_probability = np.log(counts / counts.sum())
    seen = _piece_counts(valid, num_pieces)
    return float(-(seen * log_probability).sum() / seen.sum())


def _piece_counts(shard: TokenShard, num_pieces: int) -> np.ndarray:
    tokens = shard.read_tokens(0, min(shard.num_tokens, TOKENS_READ))
    return np.bincount(tokens, minlength=num_pieces).astype(np.float64)
