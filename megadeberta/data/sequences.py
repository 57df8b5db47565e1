"""Chunks of a token file as sequences: [CLS] chunk [SEP] [PAD]*."""

# N sequences · L length

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.data import DataConfig
from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing import PackedReader
from megadeberta.data.tokenizer import CLS_ID, PAD_ID, SEP_ID, sequence_marks


def count_chunks(num_tokens: int, sequence_length: int) -> int:
    """Chunks of a shard. Every token is in exactly one: documents are laid end to end, and the last chunk is short."""
    return math.ceil(num_tokens / (sequence_length - 2))


def open_reader(prefix: Path, data: DataConfig) -> "ChunkReader | PackedReader":
    """The reader that ``data.packing`` asks for."""
    kind = PackedReader if data.packing == "documents" else ChunkReader
    cache = CacheSettings.of(data.remote_cache, data.remote_cache_bytes)
    return kind(prefix, data.sequence_length, sequence_marks(data.tokenizer), cache=cache)


class ChunkReader:
    """Reads chunks of one shard; opens the shard at once, so make it in the process that uses it."""

    def __init__(
        self,
        prefix: Path,
        sequence_length: int,
        marks: tuple[int, int] = (CLS_ID, SEP_ID),
        *,
        cache: CacheSettings | None = None,
    ) -> None:
        """
        Args:
            marks: ids of [CLS] and [SEP].
            cache: of a remote shard; None = the usual one.
        """
        self._cls_id, self._sep_id = marks
        self._shard = TokenShard.open(prefix, reads_index=False, cache=cache)
        self._length = sequence_length
        self.num_chunks = count_chunks(self._shard.num_tokens, sequence_length)

    def read(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences ``[N, L]`` of chunks ``[N]``.

        Raises:
            DataError: the shard's file was cut off or replaced since it was opened.
        """
        sequences = np.full((len(chunks), self._length), PAD_ID, np.int64)
        sequences[:, 0] = self._cls_id
        for sequence, tokens in zip(sequences, self._shard.read_runs(self._runs(chunks)), strict=True):
            sequence[1 : 1 + len(tokens)] = tokens
            sequence[1 + len(tokens)] = self._sep_id
        return sequences

    @property
    def is_remote(self) -> bool:
        """Whether ``read_ahead`` makes a difference."""
        return self._shard.is_remote

    def read_ahead(self, chunks: NDArray[np.int64]) -> None:
        """Say which chunks ``[N]`` will be read soon."""
        self._shard.read_ahead(self._runs(chunks))

    def close(self) -> None:
        """Close the token file."""
        self._shard.close()

    def _runs(self, chunks: NDArray[np.int64]) -> list[tuple[int, int]]:
        room = self._length - 2
        return [(chunk * room, min((chunk + 1) * room, self._shard.num_tokens)) for chunk in chunks.tolist()]
