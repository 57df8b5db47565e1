"""The loss of a model that knows only how often each piece occurs: what a masked-language model must beat."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from megadeberta.config.data import DataConfig
from megadeberta.data.indexed import TokenShard

TOKENS_READ = 20_000_000
"""Tokens taken from the start of each shard; frequencies of pieces are settled long before."""


def unigram_cross_entropy(data: DataConfig, fractions: Mapping[str, float], *, num_pieces: int) -> float:
    """Nats per token of the validation text under the piece frequencies of the training text.

    One is added to every count. Of a blend the frequencies are those of its sources, by their fractions of the samples.

    Args:
        fractions: of each source of a blend; of the only one any number.

    Raises:
        DataError: a token file cannot be read.
    """
    shown = {name: _piece_counts(prefix, num_pieces) for name, prefix in data.train_prefixes.items()}
    read = sum(counts.sum() for counts in shown.values())
    if data.is_blend:
        shown = {name: counts * (fractions[name] * read / counts.sum()) for name, counts in shown.items()}
    counts = np.sum(list(shown.values()), axis=0) + 1.0
    log_probability = np.log(counts / counts.sum())
    seen = np.sum([_piece_counts(prefix, num_pieces) for prefix in data.valid_prefixes.values()], axis=0)
    return float(-(seen * log_probability).sum() / seen.sum())


def _piece_counts(prefix: Path, num_pieces: int) -> np.ndarray:
    with TokenShard.open(prefix, reads_index=False) as shard:
        tokens = shard.read_tokens(0, min(shard.num_tokens, TOKENS_READ))
    return np.bincount(tokens, minlength=num_pieces).astype(np.float64)
