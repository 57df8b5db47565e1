"""SentencePiece's compiled table of character replacements, read back into what it was made of."""

import struct

import numpy as np

from megadeberta.errors import DataError

# The units of a Darts double array: a label in the low byte, or the value of a leaf; where the children are, and
# whether one of them is a leaf.
_IS_VALUE = 1 << 31
_LABEL = _IS_VALUE | 255


def read_charsmap(charsmap: bytes) -> dict[str, str]:
    """What replaces what: one character or several, by one, several or none. SentencePiece takes the longest match.

    Args:
        charsmap: ``precompiled_charsmap`` of a model; empty for no replacements.

    Raises:
        DataError: it is damaged.
    """
    if not charsmap:
        return {}
    try:
        (size,) = struct.unpack("<I", charsmap[:4])
        units, values = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64), charsmap[4 + size :]
        return {
            key.decode(): values[start : values.index(b"\0", start)].decode() for key, start in _leaves(units).items()
        }
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f"the character table of the SentencePiece model is damaged ({error}); use another") from error


def _leaves(units: np.ndarray) -> dict[bytes, int]:
    """Every key and its value, level by level. U units."""
    label = units & _LABEL  # [U]
    below = np.arange(len(units)) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))  # [U] where the children are
    has_leaf = (units >> 8) & 1 == 1  # [U]
    children = np.flatnonzero((label > 0) & (label <= 255))
    parents = children ^ label[children]
    order = np.argsort(parents, kind="stable")
    parents, children = parents[order], children[order]
    found: dict[bytes, int] = {}
    nodes, prefixes = np.zeros(1, np.int64), [b""]
    while len(nodes):
        first = np.searchsorted(parents, below[nodes], "left").tolist()
        last = np.searchsorted(parents, below[nodes], "right").tolist()
        level = [
            (child, prefix + bytes([label[child]]))
            for prefix, start, stop in zip(prefixes, first, last, strict=True)
            for child in children[start:stop].tolist()
        ]
        nodes, prefixes = np.array([child for child, _ in level], np.int64), [prefix for _, prefix in level]
        found |= {prefix: int(units[below[child]] & ~_IS_VALUE) for child, prefix in level if has_leaf[child]}
    return found
