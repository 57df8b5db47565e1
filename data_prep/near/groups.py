"""Groups of documents that pairs connect: union-find over a file. D documents, P pairs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

_CHUNK = 1 << 20


class DocumentGroups:
    """Every document's parent is itself or an earlier one of its group; the first document of a group is its root."""

    def __init__(self, path: Path, num_documents: int) -> None:
        """Each document is a group of its own. ``path`` holds 8 bytes per document, and is written anew."""
        self._num_documents = num_documents
        self._parents = np.asarray(np.memmap(path, dtype=np.int64, mode="w+", shape=(num_documents,)))
        for start, stop in self._chunks():
            self._parents[start:stop] = np.arange(start, stop)

    def join(self, pairs: np.ndarray) -> None:
        """Make one group of the groups of every pair ``[P, 2]``; the order of pairs does not matter."""
        while len(pairs):
            roots = self._roots(pairs.reshape(-1)).reshape(-1, 2)
            pairs = roots[roots[:, 0] != roots[:, 1]]
            # A root that several pairs name gets the earliest; the others are looked at again.
            np.minimum.at(self._parents, pairs.max(axis=1), pairs.min(axis=1))

    def firsts(self) -> np.ndarray:
        """``[D]`` booleans: whether a document is the first of its group."""
        found = np.empty(self._num_documents, dtype=bool)
        for start, stop in self._chunks():
            found[start:stop] = self._parents[start:stop] == np.arange(start, stop)
        return found

    def first_of(self, document: int) -> int:
        """The first document of the group of ``document``."""
        return int(self._roots(np.array([document]))[0])

    def _roots(self, documents: np.ndarray) -> np.ndarray:
        roots = self._parents[documents]
        while ((above := self._parents[roots]) != roots).any():
            roots = above
        self._parents[documents] = roots
        return roots

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._num_documents, _CHUNK):
            yield start, min(start + _CHUNK, self._num_documents)
