"""Equal and nearly equal documents: counting them, and keeping the first of each."""

# D documents

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.near.find import ComparedDocuments, NearCopies, check_near, find_near_copies
from megadeberta.data_prep.options import Deduplication, PrepOptions
from megadeberta.data_prep.parts import PartStore
from megadeberta.data_prep.progress import Stages

_SORTED_AT_ONCE, _MOST_PASSES = 1 << 17, 16


class FirstOccurrences:
    """Which documents of each part are no copy of an earlier one, by their content keys.

    Two different documents share a key of 64 bits with probability 3e-4 among 10^8 documents.
    """

    def __init__(self, store: PartStore | JoinedParts, parts: list[int]) -> None:
        """``parts``: in the order in which the first of equal documents is sought."""
        sizes = [len(store.documents(number)) for number in parts]
        ends = np.cumsum([0, *sizes])
        is_first = np.ones(ends[-1], dtype=bool)
        for low, high in _key_ranges(len(is_first)):
            keys, places = [], []
            for number, start in zip(parts, ends.tolist(), strict=False):
                of_part = store.documents(number)["key"]
                inside = np.flatnonzero((of_part >= low) & (of_part <= high))
                keys.append(of_part[inside])
                places.append(inside + start)
            found, where = np.concatenate(keys), np.concatenate(places)
            order = np.argsort(found, kind="stable")
            found = found[order]
            is_first[where[order[1:][found[1:] == found[:-1]]]] = False
        self.num_copies = len(is_first) - int(np.count_nonzero(is_first))
        self._of_part = dict(zip(parts, np.split(is_first, ends[1:-1]), strict=True)) if parts else {}

    def of_part(self, number: int) -> np.ndarray:
        """``[D]`` booleans for the documents of a part."""
        return self._of_part[number]

    def without(self, is_kept: np.ndarray) -> None:
        """Leave out some of the first occurrences too: ``is_kept`` is ``[D]`` booleans of all of them, in order."""
        done = 0
        for of_part in self._of_part.values():
            places = np.flatnonzero(of_part)
            of_part[places] = is_kept[done : done + len(places)]
            done += len(places)


def _key_ranges(num_documents: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Equal parts of all keys, so many that the documents of one take little memory; at most 16 passes over them."""
    number = max(1, min(-(-num_documents // _SORTED_AT_ONCE), _MOST_PASSES)) if num_documents else 0
    for place in range(number):
        yield np.uint64((place << 64) // number), np.uint64(((place + 1 << 64) // number) - 1)


class Copies:
    """What is left out of the token files as a copy, and what is said of it."""

    def __init__(self, choice: Deduplication, firsts: FirstOccurrences, near: NearCopies | None) -> None:
        """Use ``find_copies``."""
        self._choice = choice
        self._firsts = firsts
        self._near = near

    def kept(self, number: int) -> np.ndarray | slice:
        """Which documents of a part go into the token files."""
        return slice(None) if self._choice is Deduplication.NONE else self._firsts.of_part(number)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        near = self._near
        found: dict[str, Any] = {"copied_documents": self._firsts.num_copies}
        if near is not None:
            found["near_duplicates"] = {"documents": near.num_documents, "examples": near.examples}
        return found

    def lines(self) -> list[str]:
        """For the screen."""
        lines = []
        if self._firsts.num_copies:
            is_kept = self._choice is Deduplication.NONE
            done = "kept: --deduplicate=exact leaves them out" if is_kept else "left out"
            lines.append(f"{self._firsts.num_copies:,} documents are copies of an earlier one, and {done}")
        if self._near is not None:
            lines.append(f"{self._near.num_documents:,} documents are nearly equal to an earlier one, and left out")
        return lines


def check_deduplication(options: PrepOptions) -> None:
    """Refuse what cannot be done here, before anything is read.

    Raises:
        ConfigError: a package is missing.
    """
    if options.deduplicate is Deduplication.NEAR and options.part is None:
        check_near()


def find_copies(
    store: PartStore | JoinedParts,
    numbers: dict[str, list[int]],
    options: PrepOptions,
    *,
    tokenizer: VocabularyTokenizer,
    folder: Path,
    stages: Stages,
) -> Copies:
    """Find the documents to leave out.

    Args:
        numbers: of the parts of each split, in order. The validation corpus comes first: what is in both is left out
            of the training text.
        folder: for temporary files.

    Raises:
        StorageError: no room, or the file system refused.
    """
    parts = numbers["valid"] + numbers["train"]
    firsts = FirstOccurrences(store, parts)
    if options.deduplicate is not Deduplication.NEAR:
        return Copies(options.deduplicate, firsts, None)
    near = find_near_copies(
        ComparedDocuments(store, parts, firsts.of_part),
        tokenizer=tokenizer,
        similarity=options.similarity,
        folder=folder,
        stages=stages,
        workers=options.workers,
    )
    firsts.without(near.is_first)
    return Copies(options.deduplicate, firsts, near)
