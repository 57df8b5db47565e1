"""How many tokens of a sequence become targets, and how many rows of a batch are reserved for them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLOT_MULTIPLE = 8
"""Slots per sequence are a multiple of this, so that a run sees few different shapes."""
SPECIAL_TOKENS = 2
"""[CLS] and [SEP] of a sequence."""


def masked_tokens(mask_rate: float, num_tokens: ArrayLike) -> NDArray[np.int64]:
    """Tokens to mask among ``num_tokens``, [CLS] and [SEP] counted; ties to even, as Python's ``round``.

    Whole words may make it a few more: a word is taken whole if its first token comes before these are used up.
    """
    return np.maximum(1, np.rint(mask_rate * np.asarray(num_tokens)).astype(np.int64))


def slots_for(targets: int) -> int:
    """Q: slots per sequence where the sequence with the most targets has this many."""
    return max(1, -(-targets // SLOT_MULTIPLE)) * SLOT_MULTIPLE
