"""Plain text, cut into documents at blank lines, lines, titles or files."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import LINE_END, MAX_DOCUMENT_CHARACTERS, Format
from megadeberta.data_prep.formats.spans import Span, SpanStream, count_lines, read_spans, sound_text
from megadeberta.data_prep.lines import BLANKS, BadLine, Line, decode, read_lines, usable
from megadeberta.data_prep.options import DocumentPer, ReadOptions

# A WikiText title is `` = Title = ``; sections have more equals signs. Also needs a blank line on both sides.
_TITLE = rb" = (?!= )[^\n]*(?<! =) = \r?"
_HEADING = re.compile(_TITLE)
_BLANK = rb"[ \t\r\v\f]*\n"
_CUTS = {
    DocumentPer.PARAGRAPH: re.compile(rb"\n" + _BLANK),
    DocumentPer.LINE: LINE_END,
    DocumentPer.WIKITEXT: re.compile(rb"\n" + _BLANK + rb"(?=" + _TITLE + rb"\n" + _BLANK + rb")"),
}
_STARTS = {per: re.compile(cut.pattern.decode()) for per, cut in _CUTS.items()}
"""The same in text."""


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    offset = 0
    for span in read_spans(file, _CUTS.get(options.document_per)):
        documents = _cut(span, options)
        if documents is None:
            lines = read_lines(SpanStream(span), max_bytes=options.max_line_bytes, number=tally.lines, offset=offset)
            yield from _texts_of_lines(lines, options, tally)
        else:
            count_lines(span, tally)
            yield from documents
        offset += len(span.content)


def _cut(span: Span, options: ReadOptions) -> Iterator[str] | None:
    """The documents of a span; None if its lines must be looked at, or a document is so long that it has to be cut."""
    if span.is_last and options.document_per is DocumentPer.WIKITEXT and _ends_in_title(span.content):
        return None  # that line has no blank line after it
    text = sound_text(span, max_line_bytes=options.max_line_bytes)
    if text is None:
        return None
    if options.document_per is DocumentPer.LINE:
        return (clean(line) for line in text.split("\n") if line.strip(BLANKS))
    cut = _STARTS.get(options.document_per)
    parts = cut.split(text) if cut else [text]
    if len(text) >= MAX_DOCUMENT_CHARACTERS and max(map(len, parts)) >= MAX_DOCUMENT_CHARACTERS:
        return None
    return filter(None, map(clean, parts))


def _ends_in_title(content: bytes) -> bool:
    """Whether the last line that is not blank may be a title."""
    return content.rstrip().rpartition(b"\n")[2].startswith(b" =")


def _texts_of_lines(lines: Iterator[Line], options: ReadOptions, tally: Tally) -> Iterator[str]:
    """A bad line is left out of its document; it does not end it."""
    document = _Document()
    for line, begins, ends in _boundaries(lines, options.document_per):
        if begins and document.parts:
            yield document.take()
        raw = usable(line, tally=tally)
        if raw is None:
            continue
        try:
            text = clean(decode(raw))
        except BadLine as bad:
            tally.reject(bad.kind, line=line.number, offset=line.offset, num_bytes=len(raw), detail=bad.detail)
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


TEXT = Format(
    name="text",
    summary="plain text",
    endings=(".txt", ".text", ".raw", ".md"),
    texts=_texts,
    cuts=lambda options: _CUTS.get(options.document_per),
    is_plain_text=True,
)
