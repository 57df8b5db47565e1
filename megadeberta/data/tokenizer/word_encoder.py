"""SentencePiece's ids, word by word in numpy: words that were met before are looked up, all of a text at once.

Only for models of ``word_model``, whose ids of a word are the same in every text. A new word is encoded by
SentencePiece itself, once. So is what is not known to be safe, with all that follows it in its document: words behind
so many others that SentencePiece's sums are not exact, a control character, a literal word boundary. The ids never
depend on what was encoded before.

W words of D documents, T ids.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from megadeberta.data.tokenizer.costly_text import CostlyText
from megadeberta.data.tokenizer.word_model import EXACT_STEPS, WordModel
from megadeberta.data.tokenizer.word_store import LONGEST_WORD, WORD_SLACK, Words, WordStore, costs_of, counts_of

_MOST_EXACT = EXACT_STEPS - WORD_SLACK
"""What words may cost together, so that sums inside the next one are exact as well."""

_GROUP_BYTES = 128 << 10
"""Of documents looked up at once: their arrays stay in the cache of a core."""
_LONGEST_HEAD = 64 << 10
"""Bytes of a document after which SentencePiece's sums are hardly ever exact."""
_LEAST_HEAD = _MOST_EXACT // 4
"""Words that cost less together are left to SentencePiece with the rest of their document."""


class _Group(NamedTuple):
    """The heads of some documents as one text, and where its words are."""

    documents: Sequence[bytes]
    heads: Sequence[bytes]
    words: Words
    first_words: NDArray[np.int64]
    """Of each head: ``[D]``."""


class WordEncoder:
    """Ids of documents, equal to SentencePiece's."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, model: WordModel) -> None:
        """``model``: of the same file as ``processor``."""
        self._processor = processor
        self._model = model
        self._store = WordStore(processor, model)

    def encode(self, documents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of UTF-8 texts back to back ``[T]``, and how many each has ``[D]``."""
        found = [self._encode_group(group) for group in _groups(documents)]
        ids = [np.zeros(0, np.int32), *(of_group[0] for of_group in found)]
        lengths = [np.zeros(0, np.int64), *(of_group[1] for of_group in found)]
        return np.concatenate(ids), np.concatenate(lengths)

    def _encode_group(self, documents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        group = _cut(documents)
        entries = self._store.look_up(group.words)  # [W]
        missing = np.flatnonzero(entries == 0)
        if self._store.gives_up(group.words.sizes[missing], len(entries)):
            return self._encode_whole(documents)
        if len(missing):
            entries[missing] = self._store.learn(group.words, missing)
        counts = counts_of(entries)  # [W]
        costs = np.add.reduceat(costs_of(entries), group.first_words)  # [W] -> [D]
        is_whole = [len(head) == len(document) for head, document in zip(group.heads, documents, strict=True)]
        unfinished = np.flatnonzero(~np.array(is_whole) | (costs > _MOST_EXACT))
        tails = self._tails(group, entries, counts, unfinished=unfinished.tolist()) if len(unfinished) else []
        ids, lengths = self._store.ids(entries, counts), np.add.reduceat(counts, group.first_words)
        if not tails:
            return ids, lengths
        in_tail = np.zeros(len(documents), np.int64)
        in_tail[unfinished] = [len(tail) for tail in tails]
        is_tail = np.repeat(np.arange(2 * len(documents)) % 2 == 1, np.stack([lengths, in_tail], 1).ravel())  # [T]
        both = np.empty(len(is_tail), np.int32)
        both[is_tail], both[~is_tail] = np.concatenate(tails), ids
        return both, lengths + in_tail

    def _encode_whole(self, documents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        found = self._processor.encode(list(documents), return_type="numpy", num_threads=1)
        return np.concatenate(found), np.array([len(ids) for ids in found], np.int64)

    def _tails(
        self, group: _Group, entries: NDArray[np.int64], counts: NDArray[np.int64], *, unfinished: Sequence[int]
    ) -> list[NDArray[np.int32]]:
        """What SentencePiece makes of the ends of some documents; their words are taken out of ``counts``."""
        texts, passed = [], []
        stops = np.append(group.first_words, len(entries)).tolist()
        for number in unfinished:
            first, stop = stops[number], stops[number + 1]
            costs = np.cumsum(costs_of(entries[first:stop]))
            known = int(np.searchsorted(costs, _MOST_EXACT, side="right"))
            cost = int(costs[known - 1]) if known else 0
            instead = self._costly_text.of(cost) if cost >= _LEAST_HEAD else None
            if instead is None:
                known, instead = 0, ("", 0)
            counts[first + known : stop] = 0
            size = int(group.words.sizes[first : first + known].sum()) + known  # a space behind each
            texts.append(instead[0] + group.documents[number][size:].decode())
            passed.append(instead[1])
        found = self._processor.encode(texts, return_type="numpy", num_threads=1)
        return [ids[start:] for ids, start in zip(found, passed, strict=True)]

    @functools.cached_property
    def _costly_text(self) -> CostlyText:
        return CostlyText(self._processor, self._model)


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
    return _Group(documents, heads, Words(joined + bytes(LONGEST_WORD), starts, ends - starts), first_words)
