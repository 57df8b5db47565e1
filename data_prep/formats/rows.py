"""Comma- and tab-separated values with a header line, quoted as spreadsheets and pandas do it."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import Format, RowReport
from megadeberta.data_prep.lines import BadLine
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.records import record_text
from megadeberta.errors import DataError


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally, *, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(options.max_line_bytes)
    # Bytes that are not UTF-8 become halves of surrogate pairs, which the record's check counts and leaves out.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _documents(csv.reader(text, delimiter=delimiter), options, tally)
    finally:
        text.detach()  # its owner closes the file


def _documents(rows: Iterator[list[str]], options: ReadOptions, tally: Tally) -> Iterator[str]:
    header = next(rows, [])
    missing = [key for key in options.text_keys if key not in header]
    if missing:
        columns = ", ".join(map(repr, header[:20])) or "none"
        raise DataError(
            f"no column {missing[0]!r} in the header; --text-key names the column of the text, of {columns}"
        )
    report = RowReport(tally)
    while True:
        report.row += 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            report.reject("row_broken", str(error))
            continue
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(header):
            report.reject("row_broken", f"{len(row)} fields where the header has {len(header)}")
            continue
        try:
            document = clean(record_text(dict(zip(header, row, strict=True)), options.text_keys))
        except BadLine as bad:
            report.reject(bad.kind, bad.detail)
            continue
        yield document


CSV = Format(name="csv", summary="CSV with a header", endings=(".csv",), texts=partial(_texts, delimiter=","))
TSV = Format(name="tsv", summary="TSV with a header", endings=(".tsv",), texts=partial(_texts, delimiter="\t"))
