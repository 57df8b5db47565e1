"""JSON lines: one record per line."""

from collections.abc import Iterator
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import LINE_END, Format
from megadeberta.data_prep.formats.spans import SpanStream, count_lines, read_spans, sound_text
from megadeberta.data_prep.lines import BLANKS, BadLine, Line, decode, read_lines, usable
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.records import parse_record


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    offset = 0
    for span in read_spans(file, LINE_END):
        text = sound_text(span, max_line_bytes=options.max_line_bytes)
        if text is None:
            lines = read_lines(SpanStream(span), max_bytes=options.max_line_bytes, number=tally.lines, offset=offset)
            yield from _texts_of_lines(lines, options, tally)
        else:
            number = tally.lines
            count_lines(span, tally)
            yield from _records(text, options, tally, number=number, offset=offset)
        offset += len(span.content)


def _records(text: str, options: ReadOptions, tally: Tally, *, number: int, offset: int) -> Iterator[str]:
    """``number``, ``offset``: lines and bytes before ``text``, which is sound."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for place, line in enumerate(lines):
        try:
            if not line.strip(BLANKS):
                raise BadLine("blank_line")
            yield clean(parse_record(line, options.text_keys))
        except BadLine as bad:
            # Only the first of a kind is kept with its place.
            before = [] if bad.kind in tally.examples else lines[:place]
            at = offset + sum(len(one.encode()) + 1 for one in before)
            if bad.kind == "blank_line":
                tally.count(bad.kind, line=number + place + 1, offset=at)
                continue
            tally.reject(bad.kind, line=number + place + 1, offset=at, num_bytes=len(line.encode()), detail=bad.detail)


def _texts_of_lines(lines: Iterator[Line], options: ReadOptions, tally: Tally) -> Iterator[str]:
    for line in lines:
        raw = usable(line, tally=tally)
        if raw is None:
            continue
        if not raw.strip():
            tally.count("blank_line", line=line.number, offset=line.offset)
            continue
        try:
            text = clean(parse_record(decode(raw), options.text_keys))
        except BadLine as bad:
            tally.reject(bad.kind, line=line.number, offset=line.offset, num_bytes=len(raw), detail=bad.detail)
            continue
        yield text


JSON_LINES = Format(
    name="jsonl",
    summary="JSON lines",
    endings=(".jsonl", ".ndjson", ".json"),
    texts=_texts,
    cuts=lambda options: LINE_END,
)
