"""Wikipedia: MediaWiki's XML dumps, and the text that WikiExtractor made of them."""

import contextlib
import html
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import Format, RowReport
from megadeberta.data_prep.formats.wiki_openings import is_readable
from megadeberta.data_prep.lines import BadLine, decode, read_lines, usable
from megadeberta.data_prep.options import ReadOptions
from megadeberta.errors import DataError

if TYPE_CHECKING:
    from xml.etree import ElementTree

_ARTICLES = "0"
"""The name space of articles; talk pages, templates and categories have others."""
_NOT_TEXT = {"ref", "table", "gallery", "math", "timeline", "syntaxhighlight", "source", "score"}
_LINK_OF_NO_TEXT = re.compile(r"(?:\s*+:)?[^\[\]|:]++:")  # [[File:...]], [[Category:...]], [[de:...]]
_DOC = re.compile(rb"<doc [^>]*>\s*")


def _dump_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    from xml.etree import ElementTree

    report = RowReport(tally)
    try:
        for page in _pages(file):
            report.row += 1
            if page.findtext("{*}ns") != _ARTICLES or page.find("{*}redirect") is not None:
                continue
            markup = page.findtext("{*}revision/{*}text") or ""
            if len(markup) > options.max_line_bytes:
                detail = f"{page.findtext('{*}title')}: {len(markup)} characters"
                report.reject("line_too_long", detail, num_bytes=len(markup.encode()))
                continue
            if not is_readable(markup):
                detail = f"{page.findtext('{*}title')}: {len(markup)} characters"
                report.reject("markup_broken", detail, num_bytes=len(markup.encode()))
                continue
            yield clean(_plain(markup))
    except ElementTree.ParseError as error:
        raise DataError(f"the XML is damaged ({error}); fetch the dump again") from error


def _pages(file: BinaryIO) -> "Iterator[ElementTree.Element]":
    from xml.etree import ElementTree

    root: ElementTree.Element | None = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        if root is None:
            root = element
        elif event == "end" and element.tag.rpartition("}")[2] == "page":
            yield element
            root.clear()  # else every page read so far stays in memory


def _plain(markup: str) -> str:
    """The text of an article: without templates, tables, references and links to files and categories."""
    import mwparserfromhell

    code = mwparserfromhell.parse(markup)
    tags = [tag for tag in code.filter_tags() if str(tag.tag).strip().lower() in _NOT_TEXT]
    links = [link for link in code.filter_wikilinks() if _LINK_OF_NO_TEXT.match(str(link.title))]
    for node in (*tags, *links):
        with contextlib.suppress(ValueError):  # inside one that was removed already
            code.remove(node)
    return str(code.strip_code(normalize=True, collapse=True))


def _extracted_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    parts: list[str] = []
    for line in read_lines(file, max_bytes=options.max_line_bytes):
        raw = usable(line, tally=tally)
        if raw is None:
            continue
        stripped = raw.strip()
        if stripped == b"</doc>":
            yield " ".join(part for part in parts if part)
            parts = []
        elif not _DOC.fullmatch(stripped):
            try:
                parts.append(clean(html.unescape(decode(raw))))
            except BadLine as bad:
                tally.reject(bad.kind, line=line.number, offset=line.offset, num_bytes=len(raw), detail=bad.detail)
    if parts:
        yield " ".join(part for part in parts if part)


WIKIPEDIA = Format(
    name="wikipedia",
    summary="a MediaWiki XML dump",
    endings=(),
    texts=_dump_texts,
    needs="mwparserfromhell:wikipedia",
)
WIKIEXTRACTOR = Format(
    name="wikiextractor",
    summary="text of WikiExtractor",
    endings=(),
    texts=_extracted_texts,
    cuts=lambda options: re.compile(rb"\n</doc>[ \t\r]*\n"),
)
