"""Comma- and tab-separated values with a header line, quoted as spreadsheets and pandas do it."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import Format, RowReport
from megadeberta.data_prep.left_out import shorten
from megadeberta.data_prep.lines import BadLine
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.records import record_text
from megadeberta.errors import DataError

_REASONS = {"unexpected end of data": "a quote that is not closed before the end of the file"}


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally, *, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(options.max_line_bytes)
    # Bytes that are not UTF-8 become halves of surrogate pairs, which the record's check counts and leaves out.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _documents(_Lines(text), options, tally, delimiter=delimiter)
    finally:
        text.detach()  # its owner closes the file


class _Lines(Iterator[str]):
    """Lines of a table, and what the present row took of them: a quote that is not closed takes all that follows."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.begin_row()

    def begin_row(self) -> None:
        """Count anew."""
        self.num_bytes = 0

    def __next__(self) -> str:
        line = self._text.readline()
        if not line:
            raise StopIteration
        self.num_bytes += len(line.encode(errors="surrogateescape"))
        return line


def _documents(lines: _Lines, options: ReadOptions, tally: Tally, *, delimiter: str) -> Iterator[str]:
    # Strict: where a quoted field goes on behind its closing quote, a lone quote has joined two rows.
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(rows)
    missing = [key for key in options.text_keys if key not in header]
    if missing:
        columns = ", ".join(repr(shorten(name)) for name in header[:20]) or "none"
        raise DataError(
            f"no column {missing[0]!r} in the first line, which must be a header; --text-key names the column of the "
            f"text, of {columns}{_other_delimiter(header)}"
        )
    if twice := [key for key in options.text_keys if header.count(key) > 1]:
        raise DataError(f"{header.count(twice[0])} columns are named {twice[0]!r}; give them different names")
    report = RowReport(tally)
    while True:
        report.row += 1
        lines.begin_row()
        try:
            row = next(rows, None)
            if row is None:
                return
            if row:
                yield clean(record_text(_record(header, row), options.text_keys))
        except csv.Error as error:
            report.reject("row_broken", _REASONS.get(str(error), str(error)), num_bytes=lines.num_bytes)
        except BadLine as bad:
            report.reject(bad.kind, bad.detail, num_bytes=lines.num_bytes)


def _header(rows: Iterator[list[str]]) -> list[str]:
    try:
        return next(rows, [])
    except csv.Error as error:
        raise DataError(f"the first line, which must be a header, is broken: {error}") from error


def _record(header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise BadLine("row_broken", f"{len(row)} fields where the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def _other_delimiter(header: list[str]) -> str:
    found = next((mark for mark in ";|\t," if len(header) == 1 and mark in header[0]), "")
    return (
        f"; columns divided by {found!r} are not read as this format: use commas (csv) or tabs (tsv)" if found else ""
    )


CSV = Format(name="csv", summary="CSV with a header", endings=(".csv",), texts=partial(_texts, delimiter=","))
TSV = Format(name="tsv", summary="TSV with a header", endings=(".tsv",), texts=partial(_texts, delimiter="\t"))
