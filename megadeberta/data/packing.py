"""Sequences of whole documents: [CLS] document [SEP] [CLS] document [SEP] ... [PAD]*.

A document that does not fit any more is cut where the sequence ends and goes on in the next one, so a sequence is a run
of the shard's tokens like every chunk, with the borders of the documents marked.
"""

# N sequences · L length · S sequences of the shard · D documents

from array import array
from bisect import bisect_right
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing_plan import PackingPlan
from megadeberta.data.tokenizer import CLS_ID, PAD_ID, SEP_ID

_MARKS = 2  # [CLS] and [SEP] of every document or part of one
_DOCUMENTS_AT_ONCE = 1 << 18  # bounds the memory of planning; more than the documents of any one sequence


def plan_sequences(document_ends: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
    """Where each sequence starts in the shard's tokens, and where the last one ends: ``[S + 1]``.

    Args:
        document_ends: ``[D]``, strictly increasing: no document is empty.
    """
    alone = sequence_length - _MARKS
    total = int(document_ends[-1]) if len(document_ends) else 0
    starts, position, document = array("q", [0]), 0, 0
    while position < total:
        # Plain lists of a block: a search in them costs a tenth of one in an array.
        block = document_ends[document : document + _DOCUMENTS_AT_ONCE]
        ends = block.tolist()
        # Tokens and marks up to the end of each document: what fits is one search away.
        costs = (block + _MARKS * np.arange(len(block))).tolist()
        is_last = document + len(block) == len(document_ends)
        # A sequence that begins later than this may reach into the next block.
        until = len(block) if is_last else len(block) - sequence_length
        number = 0
        while number < until:
            room = sequence_length + position + _MARKS * (number - 1)
            after = bisect_right(costs, room, number, min(number + sequence_length, len(costs)))
            if after == number:
                # A long document fills sequences until the rest of it fits into one.
                count = (ends[number] - position - 1) // alone
                starts.extend(range(position + alone, position + count * alone + 1, alone))
                position += count * alone
                continue
            room -= costs[after - 1]
            position, number = ends[after - 1], after
            if room > _MARKS and document + number < len(document_ends):
                position += room - _MARKS
            starts.append(position)
        document += number
    return np.array(starts, np.int64)


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
        place, lock = self._shard.plan_place
        self._plan = PackingPlan.open(
            place,
            sequence_length,
            lock=lock,
            idx_sha256=self._shard.manifest.idx_sha256,
            planned=lambda: _plan_shard(prefix, sequence_length),
        )
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
                place += len(part) + _MARKS
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


def _plan_shard(prefix: Path, sequence_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    with TokenShard.open(prefix) as shard:
        ends = np.append(shard.document_offsets[1:], shard.num_tokens)
    ends = ends[np.diff(ends, prepend=0) > 0]
    return plan_sequences(ends, sequence_length), ends


def document_starts(sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the [CLS] before each token, ``[N, L]``; padding counts to the last document.

    Args:
        sequences: ``[N, L]``, of which each begins with [CLS].
    """
    places = np.arange(sequences.shape[1])
    return np.maximum.accumulate(np.where(sequences == sequences[:, :1], places, 0), axis=1)
