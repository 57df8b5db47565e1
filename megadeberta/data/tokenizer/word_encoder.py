"""SentencePiece's ids, word by word in numpy: words that were met before are looked up, all of a text at once.

Only for models of ``word_model``, whose ids of a word are the same in every text. A new word is encoded by
SentencePiece itself, once. So is what is not known to be safe, with all that follows it in its document: words behind
so many others that SentencePiece's sums are not exact, a control character, a literal word boundary. The ids never
depend on what was encoded before.

A word's entry is one number: where its ids are, how many, and what they cost. W words of D documents, T ids.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from megadeberta.data.tokenizer.costly_text import CostlyText
from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY
from megadeberta.data.tokenizer.word_model import EXACT_STEPS, WordModel
from megadeberta.data.tokenizer.word_table import WordTable

_COST_BITS, _COUNT_BITS = 24, 8
_MOST_COST, _MOST_IDS = (1 << _COST_BITS) - 1, (1 << _COUNT_BITS) - 1
_IDS_AT = _COST_BITS + _COUNT_BITS
_SLACK = EXACT_STEPS // 16
"""What a cut of a single word may cost before a better one is found."""
_MOST_EXACT = EXACT_STEPS - _SLACK
"""What words may cost together, so that sums inside the next one are exact as well."""
_UNSAFE = (1 << _IDS_AT) | _MOST_COST
"""The entry of a word whose document is left to SentencePiece: no ids, at a cost that no document may have."""
_UNSAFE_TEXT = re.compile(rb"[\x00-\x1f\x7f]|" + WORD_BOUNDARY.encode())

_GROUP_BYTES = 128 << 10
"""Of documents looked up at once: their arrays stay in the cache of a core."""
_LONGEST_HEAD = 64 << 10
"""Bytes of a document after which SentencePiece's sums are hardly ever exact."""
_LEAST_HEAD = _MOST_EXACT // 4
"""Words that cost less together are left to SentencePiece with the rest of their document."""
_TABLES = ((2, 18), (5, 15))
"""Columns of eight bytes, and bits of the number of slots, of the tables: 8.4 and 1.6 MB. Longer words are not kept."""
_LONGEST_WORD = 8 * _TABLES[-1][0]
_LONGEST_SAFE_WORD = 1024
"""Bytes above which a word is left to SentencePiece with its document, unseen."""


class _Group(NamedTuple):
    """The heads of some documents as one text, and where its words are."""

    documents: Sequence[bytes]
    heads: Sequence[bytes]
    """What of the documents is in ``text``."""
    text: bytes
    """The heads with a space behind each, and room for the longest key behind all."""
    starts: NDArray[np.int64]  # [W]
    sizes: NDArray[np.int64]  # [W]
    first_words: NDArray[np.int64]
    """Of each head: ``[D]``."""

    def keys(self, words: NDArray[np.int64] | slice, columns: int) -> list[NDArray[np.uint64]]:
        """The first bytes of some words, in columns of eight."""
        size = 8 * columns
        windows = np.ndarray(len(self.text) - size + 1, f"V{size}", self.text, strides=(1,))  # from every byte on
        found = windows[self.starts[words]].view(np.uint64).reshape(-1, columns)
        sizes = np.minimum(self.sizes[words], size)
        return [found[:, column] & _KEPT[column].take(sizes) for column in range(columns)]


def _kept_bits(column: int) -> NDArray[np.uint64]:
    """Of a column of a key: the bits that belong to a word of each number of bytes."""
    sizes = [min(max(size - 8 * column, 0), 8) for size in range(_LONGEST_WORD + 1)]
    return np.array([(1 << 8 * size) - 1 for size in sizes], np.uint64)


_KEPT = [_kept_bits(column) for column in range(_TABLES[-1][0])]


class WordEncoder:
    """Ids of documents, equal to SentencePiece's; memory is bounded by ``_TABLES`` and the ids of their words."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, model: WordModel) -> None:
        """``model``: of the same file as ``processor``."""
        self._processor = processor
        self._model = model
        self._tables = [WordTable(columns, slot_bits=bits) for columns, bits in _TABLES]
        self._pool = np.zeros(1 << 16, np.int32)
        self._most_characters = _SLACK // model.most - 2
        """Of a word: each may cost as much as an unknown one, and so may what follows them."""
        self._used = 1
        """Ids in the pool of words that are in a table; the first stands for nothing."""

    def encode(self, documents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of UTF-8 texts back to back ``[T]``, and how many each has ``[D]``."""
        found = [self._encode_group(group) for group in _groups(documents)]
        ids = [np.zeros(0, np.int32), *(of_group[0] for of_group in found)]
        lengths = [np.zeros(0, np.int64), *(of_group[1] for of_group in found)]
        return np.concatenate(ids), np.concatenate(lengths)

    def _encode_group(self, documents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        group = _cut(documents)
        entries = self._entries(group)  # [W]
        counts = (entries >> _COST_BITS) & _MOST_IDS  # [W]
        costs = np.add.reduceat(entries & _MOST_COST, group.first_words)  # [W] -> [D]
        is_whole = [len(head) == len(document) for head, document in zip(group.heads, documents, strict=True)]
        unfinished = np.flatnonzero(~np.array(is_whole) | (costs > _MOST_EXACT))
        tails = self._tails(group, entries, counts, unfinished=unfinished.tolist()) if len(unfinished) else []
        ids, lengths = self._ids(entries, counts), np.add.reduceat(counts, group.first_words)
        if not tails:
            return ids, lengths
        in_tail = np.zeros(len(documents), np.int64)
        in_tail[unfinished] = [len(tail) for tail in tails]
        is_tail = np.repeat(np.arange(2 * len(documents)) % 2 == 1, np.stack([lengths, in_tail], 1).ravel())  # [T]
        both = np.empty(len(is_tail), np.int32)
        both[is_tail], both[~is_tail] = np.concatenate(tails), ids
        return both, lengths + in_tail

    def _tails(
        self, group: _Group, entries: NDArray[np.int64], counts: NDArray[np.int64], *, unfinished: Sequence[int]
    ) -> list[NDArray[np.int32]]:
        """What SentencePiece makes of the ends of some documents; their words are taken out of ``counts``."""
        texts, passed = [], []
        stops = np.append(group.first_words, len(entries)).tolist()
        for number in unfinished:
            first, stop = stops[number], stops[number + 1]
            costs = np.cumsum(entries[first:stop] & _MOST_COST)
            known = int(np.searchsorted(costs, _MOST_EXACT, side="right"))
            cost = int(costs[known - 1]) if known else 0
            instead = self._costly_text.of(cost) if cost >= _LEAST_HEAD else None
            if instead is None:
                known, instead = 0, ("", 0)
            counts[first + known : stop] = 0
            size = int(group.sizes[first : first + known].sum()) + known  # a space behind each
            texts.append(instead[0] + group.documents[number][size:].decode())
            passed.append(instead[1])
        found = self._processor.encode(texts, return_type="numpy", num_threads=1)
        return [ids[start:] for ids, start in zip(found, passed, strict=True)]

    @functools.cached_property
    def _costly_text(self) -> CostlyText:
        return CostlyText(self._processor, self._model)

    def _ids(self, entries: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids of words in order: [W] -> [T]."""
        ends = np.cumsum(counts)
        first = (entries >> _IDS_AT) - ends + counts  # of a word, less the ids in front of it
        places = np.repeat(first, counts)
        places += np.arange(len(places))
        return self._pool[places]

    def _entries(self, group: _Group) -> NDArray[np.int64]:
        """Of every word; those of new words point at ids that hold until the next group."""
        short, long = self._tables
        keys = group.keys(slice(None), _TABLES[0][0])
        entries = short.find(keys)
        longer = np.flatnonzero(group.sizes > 8 * _TABLES[0][0])
        if len(longer):
            entries[longer] = long.find(group.keys(longer, _TABLES[1][0])) * (group.sizes[longer] <= _LONGEST_WORD)
        missing = np.flatnonzero(entries == 0)
        if len(missing):
            entries[missing] = self._learn(group, missing)
        return entries

    def _learn(self, group: _Group, missing: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encode words that are in no table, and add as many as there is room for; the entry of each."""
        starts, sizes = group.starts[missing], group.sizes[missing]
        words = [group.text[start:stop] for start, stop in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]
        numbers = dict.fromkeys(words, 0)
        numbers.update(zip(numbers, range(len(numbers)), strict=True))
        which = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))  # [missing] -> a distinct word
        first = np.empty(len(numbers), np.int64)  # [distinct words] -> one of its places in `missing`
        first[which] = np.arange(len(words))
        table_of = np.searchsorted([8 * columns for columns, _ in _TABLES], sizes[first])
        chosen = [np.flatnonzero(table_of == number)[: table.room] for number, table in enumerate(self._tables)]
        order = np.concatenate([*chosen, np.setdiff1d(np.arange(len(first)), np.concatenate(chosen))])
        entries, ends = self._encode_words([words[place] for place in first[order].tolist()], sizes[first[order]])
        added = 0
        for table, (columns, _), numbers_kept in zip(self._tables, _TABLES, chosen, strict=True):
            new = entries[added : added + len(numbers_kept)]
            table.add(group.keys(missing[first[numbers_kept]], columns), new)
            added += len(numbers_kept)
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


def _head(document: bytes) -> bytes:
    """The first words of a long document, about as many as SentencePiece's sums are exact for."""
    if b"\0" in document:
        return b""  # a word's key would not tell it from one that ends there
    if len(document) <= _LONGEST_HEAD:
        return document
    return document[: max(0, document.rfind(b" ", 0, _LONGEST_HEAD))]


def _groups(documents: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Runs of documents with heads of about ``_GROUP_BYTES``."""
    first = size = 0
    for number, document in enumerate(documents):
        if first < number and size > _GROUP_BYTES:
            yield documents[first:number]
            first, size = number, 0
        size += min(len(document), _LONGEST_HEAD)
    if first < len(documents):
        yield documents[first:]


def _cut(documents: Sequence[bytes]) -> _Group:
    heads = [_head(document) for document in documents]
    joined = b" ".join((*heads, b""))
    ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == ord(" "))
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    sizes = np.fromiter(map(len, heads), np.int64, len(heads))
    first_words = np.searchsorted(starts, np.cumsum(sizes + 1) - sizes - 1)
    return _Group(documents, heads, joined + bytes(_LONGEST_WORD), starts, ends - starts, first_words)
