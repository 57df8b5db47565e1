"""Common Crawl's extracted text: WET files, and other WARC files whose records are plain text."""

from collections.abc import Iterator
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import Format, RowReport
from megadeberta.data_prep.lines import BadLine, decode
from megadeberta.data_prep.options import ReadOptions
from megadeberta.errors import DataError

_LONGEST_HEADER, _LONGEST_NUMBER, _MOST_FIELDS = 64 << 10, 18, 1000
_TEXT_TYPES = {"conversion", "resource"}
_WEB_TYPES = {"response", "request"}


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    report = RowReport(tally)
    while (header := _header(file)) is not None:
        report.row += 1
        length = _length(header, report.row)
        kind = header.get("warc-type", "")
        if kind in _WEB_TYPES:
            raise DataError(
                "holds web pages (WARC records of type response), not their text; take the WET files of the same "
                "crawl, or extract the text first (trafilatura, datatrove)"
            )
        is_text = kind in _TEXT_TYPES and header.get("content-type", "").split(";")[0].strip() in ("text/plain", "")
        if length > options.max_line_bytes:
            _skip(file, length)
            if is_text:
                report.reject("line_too_long", f"{length} bytes", num_bytes=length)
            continue
        raw = file.read(length)
        if not is_text:
            continue
        if len(raw) < length:
            report.reject("truncated_record", f"{len(raw)} of {length} bytes", num_bytes=len(raw))
            return
        try:
            document = clean(decode(raw))
        except BadLine as bad:
            report.reject(bad.kind, bad.detail, num_bytes=len(raw))
            continue
        yield document


def _length(header: dict[str, str], row: int) -> int:
    text = header.get("content-length", "")
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER):
        raise DataError(f"record {row} has no Content-Length; the WARC file is damaged: fetch it again")
    return int(text)


def _header(file: BinaryIO) -> dict[str, str] | None:
    """The header of the next record, names in small letters; None at the end of the file."""
    line = b"\n"
    while line in (b"\n", b"\r\n"):
        line = file.readline(_LONGEST_HEADER)
    if not line:
        return None
    if not line.startswith(b"WARC/"):
        raise DataError("a record does not begin with 'WARC/'; the WARC file is damaged: fetch it again")
    header: dict[str, str] = {}
    while (line := file.readline(_LONGEST_HEADER)).strip():
        if len(header) == _MOST_FIELDS:
            raise DataError(f"a record has more than {_MOST_FIELDS} fields; the WARC file is damaged: fetch it again")
        name, _, value = line.decode("utf-8", "replace").partition(":")
        header[name.strip().lower()] = value.strip()
    return header


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0 and (chunk := file.read(min(count, 1 << 20))):
        count -= len(chunk)


WARC = Format(name="wet", summary="WET (text of Common Crawl)", endings=(".wet", ".warc"), texts=_texts)
