"""Which documents are looked at to describe a corpus: the first of a block, and of the others some by their text."""

import hashlib

_FIRST, _ENDS = 64, 512
_WHOLE_BYTES, _MOST_EVERY = 4 << 20, 16


def sample_every(num_bytes: int) -> int:
    """Of how many documents one is looked at in a corpus of that size: all of 4 MiB or less, at least a sixteenth."""
    every = 1
    while every < _MOST_EVERY and num_bytes > every * _WHOLE_BYTES:
        every *= 2
    return every


def sample_weight(number: int, text: str, every: int) -> int:
    """How many documents this one stands for; 0 = it is not looked at.

    Chosen by their text, not by their number, so that texts of two languages in turns are looked at alike.

    Args:
        number: of the document in its block.
        every: one of so many is chosen.
    """
    if number < _FIRST or every == 1:
        return 1
    key = hashlib.blake2b((text[:_ENDS] + text[-_ENDS:]).encode(), digest_size=1).digest()
    return 0 if key[0] % every else every
