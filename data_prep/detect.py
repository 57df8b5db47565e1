"""What a file is, by its first bytes; its name decides only where they leave a choice."""

import csv
import json
import re
from dataclasses import dataclass

from megadeberta.data_prep.compression import compression_of
from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.formats.columns import ARROW, PARQUET
from megadeberta.data_prep.formats.json_lines import JSON_LINES
from megadeberta.data_prep.formats.plain_text import TEXT
from megadeberta.data_prep.formats.rows import CSV, TSV
from megadeberta.data_prep.formats.table import format_of_ending
from megadeberta.data_prep.formats.tar import TAR, is_old_tar
from megadeberta.data_prep.formats.warc import WARC
from megadeberta.data_prep.formats.wikipedia import WIKIEXTRACTOR, WIKIPEDIA
from megadeberta.data_prep.structured_text import (
    HTML_HEADS,
    MARKUP_HEADS,
    begin_of_markup,
    has_old_line_ends,
    json_records,
    sample_lines,
    structure_of,
)
from megadeberta.storage import LFS_POINTER

HEAD_BYTES = 64 << 10
"""Plain bytes that are looked at."""

_MAGIC: dict[bytes, Format] = {b"PAR1": PARQUET, b"ARROW1": ARROW, b"WARC/": WARC}
_ARROW_STREAM = re.compile(rb"\xff\xff\xff\xff..\x00\x00", re.DOTALL)  # a message's mark and its length
_UNREADABLE = {
    LFS_POINTER: ("a pointer of Git LFS and not the file itself", "fetch it: git lfs pull"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"7z\xbc\xaf": ("a 7-zip archive", "unpack it"),
    b"Rar!": ("a rar archive", "unpack it"),
    b"%PDF": ("PDF", "extract its text"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save it as text"),
    b"SQLite format 3": ("an SQLite database", "write its text as JSON lines"),
    b"\x89HDF": ("HDF5", "write its text as JSON lines"),
    b"\xff\xfe\0\0": ("UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    b"Obj\x01": ("Avro", "write its text as JSON lines"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x9d": ("compressed with compress (.Z)", "unpack it: gzip -d"),
    b"\x5d\0\0": ("compressed with lzma", "unpack it: xz --format=lzma -d"),
    b"LZIP": ("compressed with lzip", "unpack it"),
    b"07070": ("a cpio archive", "unpack it"),
    b"!<arch>": ("an ar archive", "unpack it"),
    b"PARE": ("encrypted Parquet", "write it without encryption"),
    b"MMIDIDX": ("an index of token files", "it is prepared already"),
}
"""What holds text that is not read: what it is, and what to do."""
_MANY_NULS, _MANY_CONTROLS = 0.1, 0.05
"""Fractions of the head from which a file is no text; of random bytes, 0.1 are control characters."""
_FEW = 8
"""Control bytes that a short text may have."""
_CONTROLS = bytes({*range(32), 127} - {7, 8, 9, 10, 11, 12, 13, 27})
_RECORD = re.compile(r'\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')
_ARRAY = re.compile(r'\[\s*(?:[\[{"\]]|-?\d)')


@dataclass(frozen=True)
class Refusal:
    """A file that is not read."""

    what: str
    """What it is: "a zip archive"."""
    remedy: str
    """What the user can do; empty for what is no corpus at all (pictures, programs)."""
    is_text: bool = False
    """It is text, and read as such where ``--format`` asks for it."""


def detect(head: bytes, *, ending: str, text_keys: tuple[str, ...]) -> Format | Refusal:
    """What a file is.

    Args:
        head: its first ``HEAD_BYTES`` plain bytes, or all if it has fewer.
        ending: of its name, without that of a compression: ".txt", or empty.
        text_keys: columns or keys that hold the text.
    """
    for magic, known in _MAGIC.items():
        if head.startswith(magic):
            return known
    if _ARROW_STREAM.match(head):
        return ARROW
    if head[257:262] == b"ustar":
        return TAR
    for magic, (what, remedy) in _UNREADABLE.items():
        if head.startswith(magic):
            return Refusal(what, remedy)
    if packed := compression_of(head):
        return Refusal(f"{packed} data within compressed data", "unpack it once")
    if is_old_tar(head):
        return TAR
    if binary := _binary(head):
        return binary
    text = head.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    found = _detect_text(text, len(head), ending, text_keys)
    if not isinstance(found, Refusal) and found.cuts is not None and has_old_line_ends(head):
        return Refusal(
            "text whose lines end in a carriage return alone", "convert it: tr '\\r' '\\n' < FILE", is_text=True
        )
    return found


def _binary(head: bytes) -> Refusal | None:
    if not head:
        return None
    nuls, others = head.count(0), len(head) - len(head.translate(None, _CONTROLS))
    if nuls > _MANY_NULS * len(head):
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) > 10 * min(odd, even) and others < 1.5 * nuls:
            return Refusal("UTF-16 or UTF-32 without a mark", "convert it: iconv -f UTF-16LE -t UTF-8")
    if others > max(_FEW, _MANY_CONTROLS * len(head)):
        return Refusal("binary data", "")
    return None


def _detect_text(text: str, size: int, ending: str, text_keys: tuple[str, ...]) -> Format | Refusal:
    opening = begin_of_markup(text)
    if opening.startswith(HTML_HEADS):
        return Refusal("HTML", "extract its text first (trafilatura, datatrove)", is_text=True)
    if "<mediawiki" in opening and opening.startswith(("<mediawiki", "<?xml")):
        return WIKIPEDIA
    if text.startswith("<doc id="):
        return WIKIEXTRACTOR
    if opening.startswith(MARKUP_HEADS):
        return Refusal("XML", "write its text as JSON lines or plain text", is_text=True)
    first = text.split("\n", 1)[0]
    if ending in (".jsonl", ".ndjson"):
        return JSON_LINES
    if json_kind := _detect_json(text, first, is_whole_line="\n" in text or size < HEAD_BYTES):
        return json_kind
    promised = format_of_ending(ending)
    if promised in (CSV, TSV):
        return promised
    if promised is not None and promised.cuts is None:
        return Refusal(f"not {promised.summary}, although its name ends in {ending}", "fetch it again or rename it")
    if table := _table_by_header(text, text_keys):
        return table
    is_whole = size < HEAD_BYTES
    if json_records(sample_lines(text, is_whole=is_whole)):
        return JSON_LINES
    if structure := structure_of(text, is_whole=is_whole):
        return Refusal(*structure, is_text=True)
    return TEXT


def _detect_json(text: str, first: str, *, is_whole_line: bool) -> Format | Refusal | None:
    if text.startswith("{"):
        if not is_whole_line:
            return JSON_LINES if _RECORD.match(text) else None
        try:
            return JSON_LINES if isinstance(json.loads(first), dict) else None
        except (ValueError, RecursionError):
            pass
        if _RECORD.match(text):
            if first.rstrip().endswith("}"):
                return JSON_LINES  # a broken record is counted, with its place
            return Refusal("one JSON document over several lines", "make JSON lines of it: jq -c . FILE", is_text=True)
    if text.startswith("[") and _ARRAY.match(text):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            if first.strip() != "[" and not first.lstrip().startswith(("[{", "[ {")):
                return None
        return Refusal("a JSON array", "make JSON lines of it: jq -c '.[]' FILE", is_text=True)
    return None


def _table_by_header(text: str, text_keys: tuple[str, ...]) -> Format | None:
    """CSV or TSV under another name: a header that names the text, and two rows or more as wide as it."""
    lines = text.splitlines()[:-1][:50]
    for known, delimiter in ((TSV, "\t"), (CSV, ",")):
        try:
            header, *rows = list(csv.reader(lines, delimiter=delimiter)) or [[]]
        except csv.Error:
            continue
        is_header = len(header) > 1 and set(text_keys) <= set(header) and len(rows) > 1
        if is_header and all(len(row) == len(header) for row in rows[:-1] if row):
            return known
    return None
