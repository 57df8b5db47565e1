"""A hash table in numpy arrays: many short texts looked up at once, each by all of its bytes.

Open addressing: a text whose first slot is another's goes on to the next of its own sequence of slots, until it is
found or a slot is vacant. Keys are the bytes themselves, so no two texts are ever taken for one another. W texts, S
slots.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD)
"""Odd numbers with bits in no order, one for each column of a key."""
MOST_COLUMNS = len(_MULTIPLIERS)

Keys = Sequence[NDArray[np.uint64]]
"""Eight bytes of every text, the next eight, and so on: arrays ``[W]``, zeros behind the end of a text."""


class WordTable:
    """A positive number for each of some texts of at most ``8 * columns`` bytes, none of which is NUL."""

    def __init__(self, columns: int, *, slot_bits: int) -> None:
        """A table of ``2 ** slot_bits`` slots of ``8 * (columns + 1)`` bytes, at least 32; a quarter stays vacant."""
        slots = 1 << slot_bits
        width = columns + 1 if columns > 3 else 4  # numpy takes rows of 32 bytes faster than of 24
        # A slot is a row, so that looking at it costs one line of the processor's cache: its key, and its number.
        self._rows = np.zeros((slots, width), np.uint64)  # [S, width]
        self._values = self._rows[:, -1].view(np.int64)  # [S]; 0: vacant
        self._shift = np.uint64(64 - slot_bits)
        self._last_slot = slots - 1
        self.room = slots * 3 // 4
        """Texts that can still be added."""

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The numbers of texts, 0 for those that are not here: ``[W]``."""
        slots = self._first_slots(keys)
        values, is_same = self._look(keys, slots)
        pending = np.flatnonzero(~is_same & (values != 0))
        step = 0
        while len(pending):
            step += 1
            slots[pending] = there = (slots[pending] + step) & self._last_slot
            found, is_same = self._look([column[pending] for column in keys], there)
            values[pending] = found * is_same
            pending = pending[~is_same & (found != 0)]
        return values

    def add(self, keys: Keys, values: NDArray[np.int64]) -> None:
        """Add at most ``room`` texts that differ and are not here, with numbers above 0."""
        slots = self._first_slots(keys)
        self.room -= len(values)
        pending = np.arange(len(values))
        step = 0
        while len(pending):
            there = slots[pending]
            vacant = np.flatnonzero(self._values[there] == 0)
            taken, first = np.unique(there[vacant], return_index=True)
            chosen = pending[vacant[first]]
            self._values[taken] = values[chosen]
            for number, key in enumerate(keys):
                self._rows[taken, number] = key[chosen]
            is_left = np.ones(len(pending), bool)
            is_left[vacant[first]] = False
            pending = pending[is_left]
            step += 1
            slots[pending] = (slots[pending] + step) & self._last_slot

    def _first_slots(self, keys: Keys) -> NDArray[np.int64]:
        mixed = keys[0] * np.uint64(_MULTIPLIERS[0])
        for key, multiplier in zip(keys[1:], _MULTIPLIERS[1:], strict=False):
            mixed ^= mixed >> np.uint64(32)
            mixed += key * np.uint64(multiplier)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(_MULTIPLIERS[-1])
        mixed >>= self._shift
        return mixed.view(np.int64)

    def _look(self, keys: Keys, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What is in these slots, and whether it is the number of these texts."""
        rows = self._rows.take(slots, axis=0, mode="clip")  # [W, width]
        is_same = rows[:, 0] == keys[0]
        for number, key in enumerate(keys[1:], start=1):
            is_same &= rows[:, number] == key
        return rows[:, -1].astype(np.int64), is_same
