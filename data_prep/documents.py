"""From the bytes of a block to clean documents, with everything that cannot be used counted and left out."""

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, cast

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Section
from megadeberta.data_prep.compression import DamagedFile, UnpackedStream
from megadeberta.data_prep.converted import KEY, ConvertedStream
from megadeberta.data_prep.document_filter import document_filter
from megadeberta.data_prep.formats.base import MAX_DOCUMENT_CHARACTERS
from megadeberta.data_prep.formats.json_lines import JSON_LINES
from megadeberta.data_prep.languages import language_of
from megadeberta.data_prep.left_out import LeftOut, shorten
from megadeberta.data_prep.lines import CutOff
from megadeberta.data_prep.options import MAX_LINE_BYTES, ReadOptions
from megadeberta.data_prep.sampling import sample_weight
from megadeberta.data_prep.scripts import count_scripts
from megadeberta.data_prep.sources import Source
from megadeberta.data_prep.unfit_text import kind_of

_UNPACKED_AT_ONCE = 256 << 10
_NORMALIZED_AT_ONCE = 64 << 10


class _Bytes(io.RawIOBase):
    """Bytes ``[start, stop)`` of a file as a stream of its own."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file = file
        self._left = stop - start
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(chunk)
        return chunk


class _Packed(io.RawIOBase):
    """The plain bytes of a whole source. Damage is counted, and the text ends before the line it fell into."""

    def __init__(self, stream: UnpackedStream | ConvertedStream, tally: Tally) -> None:
        self._stream = stream
        self._tally = tally

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(_UNPACKED_AT_ONCE)
        except DamagedFile as damage:
            self._tally.damaged(damage.kind, offset=self._stream.produced, detail=str(damage))
            raise CutOff from damage


def read_documents(
    section: Section, options: ReadOptions, *, source: Source, tally: Tally, every: int = 1
) -> Iterator[str]:
    """Clean, non-empty documents of ``section``; everything else is counted in ``tally``.

    Args:
        source: that the section is of.
        every: one of so many documents is looked at to describe the corpus.

    Raises:
        OSError: the section cannot be read.
        DataError: a compressed file, or one of tables, is damaged.
    """
    file_format = source.file_format
    keep = document_filter(options)
    tally.start = section.offset
    with _open(section, source, options, tally) as stream:
        if section.is_converted or file_format.cuts is None:  # from rows that were short enough
            file_format = JSON_LINES
            options = replace(options, text_keys=(KEY,), max_line_bytes=MAX_LINE_BYTES)
        for text in file_format.texts(stream, options, tally):
            if not text:
                tally.empty_documents += 1
                continue
            if keep is not None and (reason := keep.reason(text)):
                tally.left_out.count(reason, text)
                continue
            if weight := sample_weight(tally.documents, text, every):
                _describe(text, weight, options, tally)
            for piece in _cut_long(text, tally):
                tally.documents += 1
                yield piece


def _describe(text: str, weight: int, options: ReadOptions, tally: Tally) -> None:
    """Count scripts and form of a document that stands for ``weight`` of them; its language where that is asked for."""
    num_bytes = weight * len(text.encode())
    tally.described_bytes += num_bytes
    if unfit := kind_of(text):
        tally.unfit.setdefault(unfit, LeftOut()).add(LeftOut(weight, num_bytes, [shorten(text)]))
    for script, number in count_scripts(text).items():
        tally.scripts[script] = tally.scripts.get(script, 0) + weight * number
    if options.count_languages:
        language = language_of(text)
        tally.languages[language] = tally.languages.get(language, 0) + num_bytes


@contextmanager
def _open(section: Section, source: Source, options: ReadOptions, tally: Tally) -> Iterator[BinaryIO]:
    if not section.is_packed:
        with section.path.open("rb") as file:
            yield cast(BinaryIO, _Bytes(file, section.start, section.stop))
        return
    stream: UnpackedStream | ConvertedStream
    if source.file_format.cuts is None:
        stream = ConvertedStream(source.path, source.compression, source.file_format, options, tally=tally)
    else:
        stream = UnpackedStream(source.path, source.compression, max_expansion=options.max_expansion)
    try:
        yield cast(BinaryIO, _Packed(stream, tally))
    finally:
        stream.close()


def _most_characters(text: str) -> int:
    """Of a piece of a document: fewer where a tokenizer's normalisation makes two or more of one, 18 at most."""
    if len(text) <= MAX_DOCUMENT_CHARACTERS // 18 or text.isascii():
        return MAX_DOCUMENT_CHARACTERS
    parts = (text[start : start + _NORMALIZED_AT_ONCE] for start in range(0, len(text), _NORMALIZED_AT_ONCE))
    expansion = sum(len(unicodedata.normalize("NFKC", part)) for part in parts) / len(text)
    return MAX_DOCUMENT_CHARACTERS if expansion < 2 else int(MAX_DOCUMENT_CHARACTERS / expansion)


def _cut_long(text: str, tally: Tally) -> Iterator[str]:
    start, most = 0, _most_characters(text)
    while len(text) - start > most:
        space = text.rfind(" ", start + 1, start + most)
        end = space if space > 0 else start + most
        yield text[start:end]
        start = end + (text[end] == " ")  # clean text never has two spaces in a row
        tally.cut_documents += 1
    if start < len(text):
        yield text[start:] if start else text
