"""How similar two documents are, from their tokens: for pairs whose sketches leave it open. P pairs, T, U words.

A sketch of 256 numbers is wrong by three hundredths now and then, and even the exact overlap of runs depends on where
the edits are. Near the border the words themselves decide: how many both documents have in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from megadeberta.data.token_kinds import kinds_with_words
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.near.sketches import RUN_WORDS, SketchFiles, document_runs, document_words
from megadeberta.data_prep.parts import PartStore

_TOKENS_AT_ONCE = 1 << 18
_REMEMBERED = 1 << 14
_MOST_ORDERED = 1 << 13
"""Words of a document; in longer ones the overlap of their runs leaves little to chance, and order takes too long."""


@dataclass(frozen=True)
class DocumentTexts:
    """The tokens of the documents that are compared, by their numbers among all."""

    store: PartStore | JoinedParts
    parts: list[int]
    firsts: np.ndarray
    """``[parts + 1]``: the number of each part's first document, and how many there are."""
    files: SketchFiles
    kinds: np.ndarray
    """``PieceKind`` of every id."""

    def of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[T]`` tokens of the documents back to back, and how many each has."""
        places = self.files.places(documents)
        parts = np.searchsorted(self.firsts, documents, side="right") - 1
        found = [
            self.store.read_tokens(self.parts[part], int(place["start"]), int(place["length"]))
            for part, place in zip(parts.tolist(), places, strict=True)
        ]
        return np.concatenate(found), places["length"].astype(np.int64)


@dataclass
class ExactComparison:
    """Compares pairs; one that comes again, in another band, is remembered."""

    texts: DocumentTexts
    similarity: float
    """The fraction of words, in their order, that both must have."""
    _known: dict[tuple[int, int], bool] = field(default_factory=dict)

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        """``[P]`` booleans of ``[P, 2]`` document numbers."""
        keys = [(first, second) for first, second in pairs.tolist()]
        new = sorted({key for key in keys if key not in self._known})
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = sorted(set(keys))
        for some in self._groups(np.array(new, dtype=np.int64).reshape(-1, 2)):
            self._known.update(zip(map(tuple, some.tolist()), self._compare(some), strict=True))
        return np.array([self._known[key] for key in keys], dtype=bool)

    def _groups(self, pairs: np.ndarray) -> Iterator[np.ndarray]:
        """The pairs in groups of bounded tokens."""
        ends = np.cumsum(self.texts.files.places(pairs.reshape(-1))["length"].reshape(-1, 2).sum(axis=1))
        first = 0
        while first < len(pairs):
            before = int(ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends, before + _TOKENS_AT_ONCE, side="right")), first + 1)
            yield pairs[first:last]
            first = last

    def _compare(self, pairs: np.ndarray) -> list[bool]:
        documents, places = np.unique(pairs, return_inverse=True)
        tokens, lengths = self.texts.of(documents)
        words, num_words = document_words(tokens, lengths, kinds_with_words(self.texts.kinds))
        of_documents = np.split(words, np.cumsum(num_words)[:-1])
        return [
            _are_similar(of_documents[a], of_documents[b], self.similarity) for a, b in places.reshape(-1, 2).tolist()
        ]


def needed_overlaps(similarity: float) -> tuple[float, float]:
    """Which fraction of the different runs of two documents, and of their different words, both have.

    A run of words is untouched where all its words are, which gives the overlap of the runs (as Mash does, Ondov et al.
    2016).
    """
    runs, words = (both / (2 - both) for both in (similarity**RUN_WORDS, similarity))
    return runs, words


def _are_similar(first: np.ndarray, second: np.ndarray, similarity: float) -> bool:
    """Whether two documents of words ``[U]`` share so many of the longer one's."""
    if max(len(first), len(second)) <= _MOST_ORDERED:
        return common_in_order(first.tolist(), second.tolist()) >= similarity * max(len(first), len(second))
    one = np.array([len(first)]), np.array([len(second)])
    runs = [document_runs(words, count)[0] for words, count in zip((first, second), one, strict=True)]
    needed = needed_overlaps(similarity)
    return _overlap(*runs) >= needed[0] and _overlap(first, second) >= needed[1]


def common_in_order(first: list[int], second: list[int]) -> int:
    """The length of the longest common subsequence.

    A bit per word of ``first``, all at once, for each word of ``second`` (Hyyrö, "Bit-parallel LCS-length computation
    revisited", 2004).
    """
    places: dict[int, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    unmatched = every
    for word in second:
        matched = unmatched & places.get(word, 0)
        unmatched = (unmatched + matched | unmatched - matched) & every
    return len(first) - unmatched.bit_count()


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """What both have of what either has."""
    both = np.sort(np.concatenate([np.unique(first), np.unique(second)]))
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)
