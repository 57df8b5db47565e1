"""What ``tokenizer.json`` needs from a SentencePiece file and SentencePiece's own interface does not give.

The file is a protocol buffer; the few fields needed are parsed here, so that exporting depends neither on protobuf nor
on generated classes. Field numbers are those of sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY
from megadeberta.errors import DataError

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TREAT_WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 24, 35
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5
_FLOAT = struct.Struct("<f")
_WIRE_VARINT, _WIRE_FIXED64, _WIRE_BYTES, _WIRE_FIXED32 = 0, 1, 2, 5

SCORE_STEP = 2.0**-8


class PieceType(IntEnum):
    """What SentencePiece does with a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class UnigramPiece:
    """One entry of the vocabulary."""

    text: str
    score: float
    """Its log probability."""
    type: PieceType


@dataclass(frozen=True)
class UnigramModel:
    """Pieces in the order of their ids, and the compiled table of the character normalisation."""

    pieces: tuple[UnigramPiece, ...]
    charsmap: bytes
    """Empty: the identity."""
    byte_fallback: bool

    def texts(self, *types: PieceType) -> list[str]:
        """Of the pieces of these types."""
        return [piece.text for piece in self.pieces if piece.type in types]


def parse_unigram_model(content: bytes) -> UnigramModel:
    """Read a file that SentencePiece has read before, so that it is known to be sound.

    Raises:
        DataError: it has options that a tokenizer.json cannot express.
    """
    pieces: list[UnigramPiece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(content):
        if number == _PIECE:
            pieces.append(_plain_piece(value) or _piece(dict(_fields(value))))
        elif number == _TRAINER:
            trainer = dict(_fields(value))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(value))
    model = UnigramModel(tuple(pieces), normalizer.get(_CHARSMAP, b""), bool(trainer.get(_BYTE_FALLBACK, 0)))
    _check_expressible(model, trainer, normalizer)
    return model


def round_scores(content: bytes) -> bytes:
    """The same model with the scores of its pieces rounded to multiples of ``SCORE_STEP``.

    SentencePiece adds scores up from the start of a text in 32 bits, so that of two cuts that are equally likely, as in
    any run of one character, rounding decides: the text in front of a word, and other programs, change its ids. Sums of
    such multiples are exact for texts of some thousand tokens.
    """
    rounded = bytearray(content)
    position = 0
    while position < len(content) and content[position] == _PIECE << 3 | _WIRE_BYTES:
        size, start = _varint(content, position + 1)
        position = start + size
        if _plain_piece(content[start:position]) is not None:
            (score,) = _FLOAT.unpack_from(content, position - _FLOAT.size)
            _FLOAT.pack_into(rounded, position - _FLOAT.size, round(score / SCORE_STEP) * SCORE_STEP)
    return bytes(rounded)


def _piece(fields: Mapping[int, Any]) -> UnigramPiece:
    score = _FLOAT.unpack(fields.get(_PIECE_SCORE, bytes(4)))[0]
    return UnigramPiece(fields[_PIECE_TEXT].decode(), score, PieceType(fields.get(_PIECE_TYPE, 1)))


def _plain_piece(message: bytes) -> UnigramPiece | None:
    """The usual layout, read several times faster: a text below 128 bytes and a score. None for any other."""
    stop = 2 + message[1]
    if message[0] != _PIECE_TEXT << 3 | _WIRE_BYTES or len(message) != stop + 5 or message[1] >= 128:
        return None
    if message[stop] != _PIECE_SCORE << 3 | _WIRE_FIXED32:
        return None
    return UnigramPiece(message[2:stop].decode(), _FLOAT.unpack_from(message, stop + 1)[0], PieceType.NORMAL)


def _check_expressible(model: UnigramModel, trainer: Mapping[int, Any], normalizer: Mapping[int, Any]) -> None:
    symbols = model.texts(PieceType.USER_DEFINED)
    problems = {
        "treat_whitespace_as_suffix": bool(trainer.get(_TREAT_WHITESPACE_AS_SUFFIX, 0)),
        "add_dummy_prefix=false": not normalizer.get(_ADD_DUMMY_PREFIX, 1),
        "remove_extra_whitespaces=false": not normalizer.get(_REMOVE_EXTRA_WHITESPACES, 1),
        "escape_whitespaces=false": not normalizer.get(_ESCAPE_WHITESPACES, 1),
        "user_defined_symbols that hold a space": any(" " in text or WORD_BOUNDARY in text for text in symbols),
    }
    found = [problem for problem, is_so in problems.items() if is_so]
    if found:
        raise DataError(
            f"was trained with {', '.join(found)}, for which tokenizer.json would give other ids than "
            "SentencePiece, so that a model trained with it could not be exported; use a vocabulary without "
            "(`megadeberta prep` trains such)"
        )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value: an int for varints, bytes for the rest."""
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
