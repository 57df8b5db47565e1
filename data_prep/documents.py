"""From the bytes of a block to clean documents, with every line that cannot be used counted and left out."""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import HEADING, Block
from megadeberta.data_prep.options import DocumentPer, ReadOptions

MAX_DOCUMENT_CHARACTERS = 4 << 20
"""A longer document is cut at a space into several: encoding needs about 30 bytes of memory per character."""

_CHUNK = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# C0 and C1 controls except those that str.split takes as whitespace, and the byte order mark inside text.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_HEADING = re.compile(HEADING)


def clean(text: str) -> str:
    """Remove control characters, collapse whitespace to single spaces, strip the ends; twice is the same as once.

    Unicode normalisation is left to the vocabulary (SentencePiece's nmt_nfkc), so that the same text typed into a
    trained model meets the same rule.
    """
    # A printable text has no whitespace but the space; most lines end here.
    if text.isprintable() and "  " not in text:
        return text.strip(" ")
    return " ".join(_CONTROL.sub("", text).split())


class BadLine(Exception):
    """A line that cannot be used."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


class Line(NamedTuple):
    """``raw`` is without its newline; None for a line longer than allowed."""

    number: int
    offset: int
    raw: bytes | None


def read_lines(file: BinaryIO, start: int, stop: int, *, max_bytes: int) -> Iterator[Line]:
    """Lines of bytes ``[start, stop)``, with offsets from ``start``; memory stays bounded however long a line is."""
    file.seek(start)
    left, offset, number, carry, is_skipping = stop - start, 0, 0, b"", False
    while left > 0:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        left -= len(chunk)
        if is_skipping:
            end = chunk.find(b"\n") + 1
            offset += end or len(chunk)
            if not end:
                continue
            chunk, is_skipping = chunk[end:], False
        *lines, carry = (carry + chunk).split(b"\n")
        for raw in lines:
            number += 1
            yield Line(number, offset, raw if len(raw) <= max_bytes else None)
            offset += len(raw) + 1
        if len(carry) > max_bytes:
            number += 1
            yield Line(number, offset, None)
            offset += len(carry)
            carry, is_skipping = b"", True
    if carry:
        yield Line(number + 1, offset, carry)


def read_documents(block: Block, options: ReadOptions, *, is_json: bool, tally: Tally) -> Iterator[str]:
    """Clean, non-empty documents of ``block``; everything else is counted in ``tally``.

    Raises:
        OSError: the block cannot be read.
    """
    with block.path.open("rb") as file:
        lines = read_lines(file, block.start, block.stop, max_bytes=options.max_line_bytes)
        texts = (
            _json_texts(lines, options.json_key, block=block, tally=tally)
            if is_json
            else _plain_texts(lines, options.document_per, block=block, tally=tally)
        )
        for text in texts:
            if not text:
                tally.empty_documents += 1
                continue
            for piece in _cut_long(text, tally):
                tally.documents += 1
                yield piece


def _json_texts(lines: Iterator[Line], key: str, *, block: Block, tally: Tally) -> Iterator[str]:
    for line in lines:
        raw = _usable(line, block=block, tally=tally)
        if raw is None:
            continue
        if not raw.strip():
            tally.count("blank_line", line=line.number, offset=block.offset + line.offset)
            continue
        try:
            text = clean(parse_record(decode(raw), key))
        except BadLine as bad:
            tally.count(bad.kind, line=line.number, offset=block.offset + line.offset, detail=bad.detail)
            continue
        yield text


def _plain_texts(lines: Iterator[Line], per: DocumentPer, *, block: Block, tally: Tally) -> Iterator[str]:
    """A bad line is left out of its document; it does not end it."""
    document = _Document()
    for line, begins, ends in _boundaries(lines, per):
        if begins and document.parts:
            yield document.take()
        raw = _usable(line, block=block, tally=tally)
        if raw is None:
            continue
        try:
            text = clean(decode(raw))
        except BadLine as bad:
            tally.count(bad.kind, line=line.number, offset=block.offset + line.offset, detail=bad.detail)
            continue
        document.add(text)
        if ends or document.size > MAX_DOCUMENT_CHARACTERS:
            tally.cut_documents += not ends
            yield document.take()
    if document.parts:
        yield document.take()


class _Document:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        if text:
            self.parts.append(text)
            self.size += len(text) + 1

    def take(self) -> str:
        text = " ".join(self.parts)
        self.parts, self.size = [], 0
        return text


def _boundaries(lines: Iterator[Line], per: DocumentPer) -> Iterator[tuple[Line, bool, bool]]:
    """Each line with whether it begins a document and whether it ends one."""
    if per is DocumentPer.WIKITEXT:
        yield from _wikitext_boundaries(lines)
        return
    for line in lines:
        is_blank = line.raw is not None and not line.raw.strip()
        yield line, per is DocumentPer.PARAGRAPH and is_blank, per is DocumentPer.LINE and not is_blank


def _wikitext_boundaries(lines: Iterator[Line]) -> Iterator[tuple[Line, bool, bool]]:
    """A title has a blank line on both sides: tables and formulas hold lines that look like one and have not."""
    waiting: Line | None = None
    follows_blank = True
    for line in lines:
        is_blank = line.raw is not None and not line.raw.strip()
        if waiting is not None:
            yield waiting, is_blank, False
            waiting = None
        if follows_blank and line.raw is not None and _HEADING.fullmatch(line.raw):
            waiting = line
        else:
            yield line, False, False
        follows_blank = is_blank
    if waiting is not None:
        yield waiting, True, False


def _usable(line: Line, *, block: Block, tally: Tally) -> bytes | None:
    """The line's bytes without a byte order mark; None (and counted) if it is too long."""
    tally.lines += 1
    if line.raw is None:
        tally.count("line_too_long", line=line.number, offset=block.offset + line.offset)
        return None
    tally.text_bytes += len(line.raw) + 1
    if line.raw.startswith(_BYTE_ORDER_MARK):
        tally.count("byte_order_mark", line=line.number, offset=block.offset + line.offset)
        return line.raw[len(_BYTE_ORDER_MARK) :]
    return line.raw


def decode(raw: bytes) -> str:
    """UTF-8 text of a line.

    Raises:
        BadLine: NUL, half a surrogate pair, or other invalid bytes.
    """
    if b"\0" in raw:
        raise BadLine("nul_byte")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        try:
            raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise BadLine("invalid_utf8", f"byte {raw[error.start]:#04x} at {error.start}") from None
        raise BadLine("lone_surrogate") from None


def _refuse_constant(name: str) -> NoReturn:
    raise BadLine("not_finite", name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_record(line: str, key: str) -> str:
    """The text of one JSON record.

    Raises:
        BadLine: not JSON, beyond Python's limits, without the key, or its value not usable text.
    """
    try:
        record = _DECODER.decode(line)
    except RecursionError:
        raise BadLine("nesting_too_deep") from None
    except json.JSONDecodeError as error:
        raise BadLine("invalid_json", f"{error.msg} at character {error.pos}") from None
    except ValueError:
        raise BadLine("number_too_long") from None
    if not isinstance(record, dict):
        raise BadLine("wrong_type", f"the record is a {type(record).__name__}")
    if key not in record:
        raise BadLine("missing_key", f"has {', '.join(map(repr, list(record)[:5])) or 'no key'}, not {key!r}")
    text = record[key]
    if not isinstance(text, str):
        raise BadLine("wrong_type", f"{key!r} is a {type(text).__name__}")
    if "\0" in text:
        raise BadLine("nul_byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadLine("lone_surrogate") from None
    return text


def _cut_long(text: str, tally: Tally) -> Iterator[str]:
    while len(text) > MAX_DOCUMENT_CHARACTERS:
        end = text.rfind(" ", 1, MAX_DOCUMENT_CHARACTERS)
        end = end if end > 0 else MAX_DOCUMENT_CHARACTERS
        yield text[:end]
        text = text[end:].lstrip(" ")
        tally.cut_documents += 1
    if text:
        yield text
