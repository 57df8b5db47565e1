"""What ``tokenizer.json`` needs from a SentencePiece file and SentencePiece's own interface does not give.

The file is a protocol buffer; the few fields needed are parsed here, so that exporting depends neither on protobuf nor
on generated classes. Field numbers are those of sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.data.tokenizer import MASK, SentencePieceTokenizer
from megadeberta.errors import DataError

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TREAT_WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 24, 35
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5
_USER_DEFINED, _BYTE = 4, 6
_WIRE_VARINT, _WIRE_FIXED64, _WIRE_BYTES, _WIRE_FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class UnigramPieces:
    """Pieces with their log probabilities, and the compiled table of the character normalisation."""

    pieces: list[tuple[str, float]]
    charsmap: bytes
    """Empty: the identity."""


def read_unigram_pieces(path: Path) -> UnigramPieces:
    """Read a model that ``SentencePieceTokenizer`` accepts.

    Raises:
        DataError: damaged, other special ids, or options that a tokenizer.json cannot express.
    """
    SentencePieceTokenizer.load(path)  # the one validation of special ids, model type and integrity
    pieces: list[tuple[str, float]] = []
    kinds: set[int] = set()
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(path.read_bytes()):
        if number == _PIECE:
            piece = dict(_fields(value))
            pieces.append((piece[_PIECE_TEXT].decode(), struct.unpack("<f", piece.get(_PIECE_SCORE, bytes(4)))[0]))
            kinds.add(piece.get(_PIECE_TYPE, 1))
        elif number == _TRAINER:
            trainer = dict(_fields(value))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(value))
    _check_expressible(path, kinds, trainer, normalizer, has_mask=any(text == MASK for text, _ in pieces))
    return UnigramPieces(pieces, normalizer.get(_CHARSMAP, b""))


def _check_expressible(
    path: Path, kinds: set[int], trainer: Mapping[int, Any], normalizer: Mapping[int, Any], *, has_mask: bool
) -> None:
    problems = {
        "a piece [MASK]": has_mask,
        "user_defined_symbols": _USER_DEFINED in kinds,
        "byte_fallback": _BYTE in kinds or bool(trainer.get(_BYTE_FALLBACK, 0)),
        "treat_whitespace_as_suffix": bool(trainer.get(_TREAT_WHITESPACE_AS_SUFFIX, 0)),
        "add_dummy_prefix=false": not normalizer.get(_ADD_DUMMY_PREFIX, 1),
        "remove_extra_whitespaces=false": not normalizer.get(_REMOVE_EXTRA_WHITESPACES, 1),
        "escape_whitespaces=false": not normalizer.get(_ESCAPE_WHITESPACES, 1),
    }
    found = [name for name, is_set in problems.items() if is_set]
    if found:
        raise DataError(
            f"{path}: was trained with {', '.join(found)}, for which tokenizer.json would give other ids than "
            "SentencePiece; train the vocabulary without (`megadeberta prep` does)"
        )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value: an int for varints, bytes for the rest. The file has been parsed before: it is sound."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _WIRE_VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _WIRE_BYTES:
            size, position = _varint(message, position)
        else:
            size = {_WIRE_FIXED64: 8, _WIRE_FIXED32: 4}[wire]
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
