"""The words that were met before, and SentencePiece's ids of them.

A word's entry is one number: where its ids are, how many, and what they cost. W words, T ids.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY
from megadeberta.data.tokenizer.word_model import EXACT_STEPS, WordModel
from megadeberta.data.tokenizer.word_table import WordTable

_COST_BITS, _COUNT_BITS = 24, 8
_MOST_COST, _MOST_IDS = (1 << _COST_BITS) - 1, (1 << _COUNT_BITS) - 1
_IDS_AT = _COST_BITS + _COUNT_BITS
WORD_SLACK = EXACT_STEPS // 16
"""What a cut of a single word may cost before a better one is found."""
_UNSAFE = (1 << _IDS_AT) | _MOST_COST
"""The entry of a word that is left to SentencePiece with what follows it: no ids, and no document may cost so much."""
_UNSAFE_TEXT = re.compile(rb"[\x00-\x1f\x7f]|" + WORD_BOUNDARY.encode())
_LONGEST_SAFE_WORD = 1024
"""Bytes above which a word is left to SentencePiece with its document, unseen."""

_TABLES = ((2, 18), (5, 16))
"""Columns of eight bytes, and bits of the number of slots, of the tables: 8.4 and 3.1 MB. Longer words are not kept."""
_LARGEST = [8 * columns for columns, _ in _TABLES]
"""Bytes of the longest words in them."""
LONGEST_WORD = _LARGEST[-1]
_MOST_NEW = 1 / 12
"""Of words: if more are new and will not be kept, SentencePiece is faster."""
_PATIENCE = 512
"""Texts for which it was, 64 MB, after which full tables are emptied: the corpus has become another."""


class Words(NamedTuple):
    """Where the words of a text are."""

    text: bytes
    """With room for the longest key behind it."""
    starts: NDArray[np.int64]  # [W]
    sizes: NDArray[np.int64]  # [W]

    def keys(self, words: NDArray[np.int64] | slice, columns: int) -> list[NDArray[np.uint64]]:
        """The first bytes of some words, in columns of eight."""
        size = 8 * columns
        windows = np.ndarray(len(self.text) - size + 1, f"V{size}", self.text, strides=(1,))  # from every byte on
        found = windows[self.starts[words]].view("<u8").reshape(-1, columns)
        sizes = np.minimum(self.sizes[words], size)
        return [found[:, column] & _KEPT[column].take(sizes) for column in range(columns)]


def _kept_bits(column: int) -> NDArray[np.uint64]:
    """Of a column of a key: the bits that belong to a word of each number of bytes."""
    sizes = [min(max(size - 8 * column, 0), 8) for size in range(LONGEST_WORD + 1)]
    return np.array([(1 << 8 * size) - 1 for size in sizes], np.uint64)


_KEPT = [_kept_bits(column) for column in range(_TABLES[-1][0])]


class WordStore:
    """Entries of words; memory is bounded by ``_TABLES`` and the ids of their words."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, model: WordModel) -> None:
        """``model``: of the same file as ``processor``."""
        self._processor = processor
        self._model = model
        self._most_characters = WORD_SLACK // model.most - 2
        """Of a word: each may cost as much as an unknown one, and so may what follows them."""
        self._pool = np.zeros(1 << 16, np.int32)
        self._used: int
        """Ids in the pool of words that are in a table; the first stands for nothing."""
        self._given_up: int
        """Texts that were left to SentencePiece since a table was full."""
        self._forget()

    def ids(self, entries: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids of words in order: [W] -> [T]."""
        ends = np.cumsum(counts)
        first = (entries >> _IDS_AT) - ends + counts  # of a word, less the ids in front of it
        places = np.repeat(first, counts)
        places += np.arange(len(places))
        return self._pool[places]

    def look_up(self, words: Words) -> NDArray[np.int64]:
        """The entry of every word, 0 for those that are in no table."""
        short, long = self._tables
        entries = short.find(words.keys(slice(None), _TABLES[0][0]))
        longer = np.flatnonzero(words.sizes > _LARGEST[0])
        if len(longer):
            entries[longer] = long.find(words.keys(longer, _TABLES[1][0])) * (words.sizes[longer] <= _LARGEST[1])
        return entries

    def gives_up(self, sizes: NDArray[np.int64], num_words: int) -> bool:
        """Whether too many words are new, of these sizes, for which there is no room: SentencePiece is faster."""
        table_of = np.searchsorted(_LARGEST, sizes)
        is_full = np.array([*(table.room == 0 for table in self._tables), True])
        if np.count_nonzero(is_full[table_of]) <= _MOST_NEW * num_words:
            return False
        self._given_up += bool(is_full[:-1].any())
        if self._given_up == _PATIENCE:
            self._forget()
        return True

    def _forget(self) -> None:
        self._tables = [WordTable(columns, slot_bits=bits) for columns, bits in _TABLES]
        self._used = 1
        self._given_up = 0

    def learn(self, words: Words, missing: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encode words that are in no table, and add as many as there is room for.

        Returns:
            The entry of each. Those of words that were not added hold until the next call.
        """
        starts, sizes = words.starts[missing], words.sizes[missing]
        spans = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
        found = [words.text[start:stop] for start, stop in spans]
        numbers = dict.fromkeys(found, 0)
        numbers.update(zip(numbers, range(len(numbers)), strict=True))
        which = np.fromiter(map(numbers.__getitem__, found), np.int64, len(found))  # [missing] -> a distinct word
        first = np.empty(len(numbers), np.int64)  # [distinct words] -> one of its places in `missing`
        first[which] = np.arange(len(found))
        table_of = np.searchsorted(_LARGEST, sizes[first])
        kept = [np.flatnonzero(table_of == number)[: table.room] for number, table in enumerate(self._tables)]
        order = np.concatenate([*kept, np.setdiff1d(np.arange(len(first)), np.concatenate(kept))])
        entries, ends = self._encode_words([found[place] for place in first[order].tolist()], sizes[first[order]])
        added = 0
        for table, (columns, _), chosen in zip(self._tables, _TABLES, kept, strict=True):
            new = entries[added : added + len(chosen)]
            table.add(words.keys(missing[first[chosen]], columns), new)
            added += len(chosen)
        if added:
            self._used = int(ends[added - 1])
        by_number = np.empty_like(entries)
        by_number[order] = entries
        return by_number[which]

    def _encode_words(
        self, words: Sequence[bytes], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Put the ids of words into the pool: the entry of each, and where its ids end."""
        texts, is_unsafe = _safe_texts(words, sizes)
        found = self._processor.encode(texts, num_threads=1)
        counts = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.fromiter(chain.from_iterable(found), np.int32, int(counts.sum()))
        ends = np.cumsum(counts)
        costs = _sums(self._model.costs[ids], counts)
        # Of unknown characters the ids tell neither the number nor, then, the cost.
        has_unknown = _sums(self._model.is_unknown[ids], counts) > 0
        characters = sizes * self._model.longest_replacement + 1
        counted = np.flatnonzero(has_unknown | (characters > self._most_characters))
        characters[counted] = [len(text) for text in self._processor.normalize([texts[number] for number in counted])]
        known = _sums(self._model.characters[ids], counts)
        costs[has_unknown] += ((characters - known) * self._model.most)[has_unknown]
        is_unsafe |= (characters > self._most_characters) | (counts > _MOST_IDS)
        if len(self._pool) < self._used + len(ids):
            self._pool = np.concatenate([self._pool, np.zeros(max(len(ids), len(self._pool)), np.int32)])
        self._pool[self._used : self._used + len(ids)] = ids
        entries = ((self._used + ends - counts) << _IDS_AT) | (counts << _COST_BITS) | costs
        return np.where(is_unsafe, _UNSAFE, entries), self._used + ends


def costs_of(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """What words cost: ``[W]``."""
    return entries & _MOST_COST


def counts_of(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many ids words have: ``[W]``."""
    return (entries >> _COST_BITS) & _MOST_IDS


def _safe_texts(words: Sequence[bytes], sizes: NDArray[np.int64]) -> tuple[list[str], NDArray[np.bool_]]:
    """Words as text, empty in place of those that are not safe, and which these are."""
    joined = b" ".join(words)
    is_unsafe = sizes > _LONGEST_SAFE_WORD
    if _UNSAFE_TEXT.search(joined) or is_unsafe.any():
        is_unsafe |= np.array([_UNSAFE_TEXT.search(word) is not None for word in words])
        joined = b" ".join(b"" if unsafe else word for unsafe, word in zip(is_unsafe, words, strict=True))
    return joined.decode().split(" "), is_unsafe


def _sums(values: NDArray[np.int64] | NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the first ``counts[0]`` values, of the next ``counts[1]``, and so on; 0 for none."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    return totals[ends] - totals[ends - counts]
