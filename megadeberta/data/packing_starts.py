"""Where packed sequences start, found in one look at each document, in memory that does not grow with their number.

Lay the documents end to end, each with its marks, ``[CLS] document [SEP] [CLS] document [SEP] ...``, and count places
in that line. A sequence that begins at place v has room for L of them. Cut inside a document, it is closed by a [SEP]
that the line does not have, and the next one opened by a [CLS]: that begins at v + L - 2. Where a border between
documents is at v + L - 1 or v + L, no token fits behind it, and the next sequence begins at that border. So all starts
are equal modulo L - 2 until a border is one or two more than they are, modulo L - 2; from there on they are equal to
the border.
"""

# D documents · N starts · R runs of starts L - 2 apart

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MARKS = 2
"""[CLS] and [SEP] of every document or part of one."""
_STARTS_AT_ONCE = 1 << 20


class SequenceStarts:
    """Takes the ends of documents in their order, a block at a time, and gives the starts that follow from them."""

    def __init__(self, sequence_length: int) -> None:
        self._stride = sequence_length - MARKS
        self._next = 0
        """The place of the first start that was not given yet, if no border moves it."""
        self._documents = 0
        self._tokens = 0

    def add(self, ends: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Starts ``[N]``, counted in tokens, that these documents settle; take all of them before the next call.

        Args:
            ends: ``[D]`` of the next documents, none of them empty, counted in tokens from the first document on.
        """
        if not len(ends):
            return
        places = ends + MARKS * np.arange(self._documents + 1, self._documents + 1 + len(ends))  # of the borders
        moved = places[self._borders_that_start(places)]
        firsts, limits = np.append(self._next, moved), np.append(moved, places[-1])  # [R]
        counts = np.maximum(-((firsts + MARKS - limits) // self._stride), 0)
        before = np.append(0, np.cumsum(counts))  # [R + 1]
        for low in range(0, int(before[-1]), _STARTS_AT_ONCE):
            high = min(low + _STARTS_AT_ONCE, int(before[-1]))
            inside = np.diff(np.clip(before, low, high))
            starts = np.repeat(firsts - self._stride * before[:-1], inside) + self._stride * np.arange(low, high)
            yield starts - MARKS * (self._documents + np.searchsorted(places, starts, side="right"))
        self._next = int(firsts[-1] + self._stride * counts[-1])
        self._documents += len(ends)
        self._tokens = int(ends[-1])

    def finish(self) -> NDArray[np.int64]:
        """Where the last sequence ends, ``[1]``, after all documents."""
        return np.array([self._tokens], np.int64)

    def _borders_that_start(self, places: NDArray[np.int64]) -> list[int]:
        """Numbers of the borders that a start moves to, because the sequence before has one or two places left."""
        stride, found = self._stride, []
        one, two = (self._next + 1) % stride, (self._next + 2) % stride
        for number, place in enumerate((places % stride).tolist()):
            if place == one or place == two:  # noqa: SIM109 - twice as fast as a tuple
                found.append(number)
                one, two = (place + 1) % stride, (place + 2) % stride
        return found
