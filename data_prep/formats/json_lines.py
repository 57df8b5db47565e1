"""JSON lines: one record per line."""

from collections.abc import Iterator
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import LINE_END, Format
from megadeberta.data_prep.lines import BadLine, decode, read_lines, usable
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.records import parse_record


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    for line in read_lines(file, max_bytes=options.max_line_bytes):
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
