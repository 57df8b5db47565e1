"""Streams in spans of whole documents: text that holds nothing unusual is decoded and cut at once, not line by line."""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.lines import BYTE_ORDER_MARK, CutOff

_CHUNK = 1 << 20
_LONGEST = 8 << 20
"""A document that has not ended after so many bytes is read line by line, and so is what follows it."""
_TAIL = 32 << 10
_MARKED_LINE = b"\n" + BYTE_ORDER_MARK


class Span(NamedTuple):
    """Some bytes of a stream, cut between two documents."""

    content: bytes
    is_last: bool
    rest: BinaryIO | None
    """The stream after ``content``, where a document was too long to be held; then this span is the last."""


def read_spans(file: BinaryIO, cut: re.Pattern[bytes] | None) -> Iterator[Span]:
    """A stream in spans, of about a megabyte unless documents are longer.

    Args:
        cut: ends where a span may end; None = nowhere but at the end of the stream.
    """
    carry = b""
    while True:
        try:
            chunk = file.read(_CHUNK)
        except CutOff:
            yield Span(carry[: carry.rfind(b"\n") + 1], True, None)
            return
        if not chunk:
            yield Span(carry, True, None)
            return
        held = carry + chunk
        end = _last_cut(held, cut) if cut is not None else 0
        if end:
            yield Span(held[:end], False, None)
        elif len(held) > _LONGEST:
            yield Span(held, True, file)
            return
        carry = held[end:]


def _last_cut(held: bytes, cut: re.Pattern[bytes]) -> int:
    """Where the last cut ends; 0 if there is none."""
    size = _TAIL
    while True:
        start = max(0, len(held) - size)
        end = 0
        for found in cut.finditer(held, start):
            end = found.end()
        if end or start == 0:
            return end
        size *= 8


def sound_text(span: Span, *, max_line_bytes: int) -> str | None:
    """The text of a span every line of which can be used; None where each must be looked at."""
    content = span.content
    if span.rest is not None or len(content) > max_line_bytes or b"\0" in content:
        return None
    # One byte is found ten times as fast as four, and most text has none of it.
    if content.startswith(BYTE_ORDER_MARK) or (BYTE_ORDER_MARK[:1] in content and _MARKED_LINE in content):
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def count_lines(span: Span, tally: Tally) -> None:
    """Count the lines of a span as ``lines.usable`` does."""
    is_open = bool(span.content) and not span.content.endswith(b"\n")  # the last line lacks its end
    tally.lines += span.content.count(b"\n") + is_open
    tally.text_bytes += len(span.content) + is_open


class SpanStream:
    """A span that has to be read line by line, and what comes after it, as a stream."""

    def __init__(self, span: Span) -> None:
        self._content = span.content
        self._rest = span.rest

    def read(self, size: int) -> bytes:
        """Some bytes; ``b""`` at the end."""
        if self._content:
            content, self._content = self._content, b""
            return content
        return self._rest.read(size) if self._rest is not None else b""
