"""Sequences of whole documents: [CLS] document [SEP] [CLS] document [SEP] ... [PAD]*.

A document that does not fit any more is cut where the sequence ends and goes on in the next one, so a sequence is a run
of the shard's tokens like every chunk, with the borders of the documents marked.
"""

# N sequences · L length

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing_plan import PackingPlan
from megadeberta.data.packing_starts import MARKS
from megadeberta.data.tokenizer import CLS_ID, PAD_ID, SEP_ID


class PackedReader:
    """Reads sequences of documents; opens the shard at once, so make it in the process that uses it."""

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
        self._marks = marks
        self._shard = TokenShard.open(prefix, reads_index=False, cache=cache)
        self._length = sequence_length
        self._plan = PackingPlan.open(self._shard, sequence_length)
        self.num_chunks = self._plan.num_sequences

    def read(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences ``[N, L]`` of chunks ``[N]``.

        Raises:
            DataError: the shard's file was cut off or replaced since it was opened.
        """
        sequences = np.full((len(chunks), self._length), PAD_ID, np.int64)
        runs = self._plan.runs(chunks)
        texts = zip(runs, self._plan.borders(runs), self._shard.read_runs(runs), strict=True)
        for sequence, ((start, _), borders, tokens) in zip(sequences, texts, strict=True):
            place = 0
            for part in np.split(tokens, borders - start):
                sequence[place], sequence[place + 1 + len(part)] = self._marks
                sequence[place + 1 : place + 1 + len(part)] = part
                place += len(part) + MARKS
        return sequences

    @property
    def is_remote(self) -> bool:
        """Whether ``read_ahead`` makes a difference."""
        return self._shard.is_remote

    def read_ahead(self, chunks: NDArray[np.int64]) -> None:
        """Say which chunks ``[N]`` will be read soon."""
        self._shard.read_ahead(self._plan.runs(chunks))

    def close(self) -> None:
        """Close the files."""
        self._shard.close()
        self._plan.close()


def document_starts(sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the [CLS] before each token, ``[N, L]``; padding counts to the last document.

    Args:
        sequences: ``[N, L]``, of which each begins with [CLS].
    """
    places = np.arange(sequences.shape[1])
    return np.maximum.accumulate(np.where(sequences == sequences[:, :1], places, 0), axis=1)
