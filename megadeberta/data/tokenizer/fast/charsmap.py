"""SentencePiece's compiled table of character replacements, read back into what it was made of."""

import struct

import numpy as np
import sentencepiece

from megadeberta.errors import DataError

RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
"""The tables that SentencePiece brings along."""

# The units of a Darts double array: a label in the low byte, or the value of a leaf; where the children are, and
# whether one of them is a leaf.
_IS_VALUE = 1 << 31
_LABEL = _IS_VALUE | 255
_DAMAGED = "the character table of the SentencePiece model is damaged"


def is_own_table(charsmap: bytes) -> bool:
    """Whether a compiled table is one of those that SentencePiece brings along, or empty."""
    own = (sentencepiece.SentencePieceNormalizer(rule_name=rule).serialized_model_proto() for rule in RULES)
    return not charsmap or any(charsmap in normalizer for normalizer in own)


def replacement_texts(charsmap: bytes) -> str:
    """Everything that a table puts in place of something, NUL between two.

    Raises:
        DataError: it is damaged.
    """
    try:
        return charsmap[4 + int.from_bytes(charsmap[:4], "little") :].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{_DAMAGED} ({error}); use another") from error


def may_replace(charsmap: bytes, byte: int) -> bool:
    """Whether something that a table replaces holds this byte; False is certain, and found without reading it all."""
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64)
    children = np.flatnonzero(units & _LABEL == byte)
    return bool(np.isin(children ^ byte, _children_places(units)).any())


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
        raise DataError(f"{_DAMAGED} ({error}); use another") from error


def _leaves(units: np.ndarray) -> dict[bytes, int]:
    """Every key and its value, level by level. U units."""
    label = units & _LABEL  # [U]
    below = _children_places(units)
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


def _children_places(units: np.ndarray) -> np.ndarray:
    """Where the children of each unit are, but for their labels: ``[U]``."""
    return np.arange(len(units)) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
