"""How many tokens of a sequence become targets, and how many rows of a batch are reserved for them."""

import math

SLOT_MULTIPLE = 8
"""Slots per sequence are a multiple of this, so that a run sees few different shapes."""
SPECIAL_TOKENS = 2
"""[CLS] and [SEP] of a sequence."""


def most_masked(mask_rate: float, candidates: int) -> int:
    """Tokens that are masked at most among ``candidates``, where each is masked by itself.

    The mean is ``mask_rate * candidates``. Where whole words are masked, a few more may be.
    """
    return math.ceil(mask_rate * candidates)


def slots_for(targets: int) -> int:
    """Q: slots per sequence where the sequence with the most targets has this many."""
    return max(1, -(-targets // SLOT_MULTIPLE)) * SLOT_MULTIPLE
