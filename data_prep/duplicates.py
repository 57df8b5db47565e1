"""Equal documents: counting them, and keeping the first of each."""

# D documents

import numpy as np

from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.parts import PartStore


class FirstOccurrences:
    """Which documents of each part are no copy of an earlier one, by their content keys.

    Two different documents share a key of 64 bits with probability 3e-4 among 10^8 documents.
    """

    def __init__(self, store: PartStore | JoinedParts, parts: list[int]) -> None:
        """``parts``: in the order in which the first of equal documents is sought; one pass over all keys."""
        keys = [store.documents(number)["key"] for number in parts]
        _, firsts = np.unique(np.concatenate([np.empty(0, np.uint64), *keys]), return_index=True)
        sizes = [len(of_part) for of_part in keys]
        is_first = np.zeros(sum(sizes), dtype=bool)
        is_first[firsts] = True
        self.num_copies = len(is_first) - len(firsts)
        self._of_part = dict(zip(parts, np.split(is_first, np.cumsum(sizes)[:-1]), strict=True)) if parts else {}

    def of_part(self, number: int) -> np.ndarray:
        """``[D]`` booleans for the documents of a part."""
        return self._of_part[number]
