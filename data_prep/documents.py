"""From the bytes of a block to clean documents, with everything that cannot be used counted and left out."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, cast

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Block
from megadeberta.data_prep.converted import KEY
from megadeberta.data_prep.document_filter import document_filter
from megadeberta.data_prep.formats.base import MAX_DOCUMENT_CHARACTERS, Format
from megadeberta.data_prep.formats.json_lines import JSON_LINES
from megadeberta.data_prep.options import MAX_LINE_BYTES, ReadOptions
from megadeberta.data_prep.scripts import SAMPLED_DOCUMENTS, count_scripts


class _Section(io.RawIOBase):
    """Bytes ``[start, stop)`` of a file as a stream of its own."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file = file
        self._left = stop - start
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(chunk)
        return chunk


def read_documents(block: Block, options: ReadOptions, *, file_format: Format, tally: Tally) -> Iterator[str]:
    """Clean, non-empty documents of ``block``; everything else is counted in ``tally``.

    Raises:
        OSError: the block cannot be read.
    """
    if block.is_converted:  # from rows that were short enough
        file_format = JSON_LINES
        options = replace(options, text_keys=(KEY,), max_line_bytes=MAX_LINE_BYTES)
    keep = document_filter(options)
    tally.start = block.offset
    with block.path.open("rb") as file:
        for text in file_format.texts(cast(BinaryIO, _Section(file, block.start, block.stop)), options, tally):
            if not text:
                tally.empty_documents += 1
                continue
            if keep is not None and (reason := keep.reason(text)):
                tally.left_out.count(reason, text)
                continue
            if tally.documents < SAMPLED_DOCUMENTS:
                for script, number in count_scripts(text).items():
                    tally.scripts[script] = tally.scripts.get(script, 0) + number
            for piece in _cut_long(text, tally):
                tally.documents += 1
                yield piece


def _cut_long(text: str, tally: Tally) -> Iterator[str]:
    while len(text) > MAX_DOCUMENT_CHARACTERS:
        end = text.rfind(" ", 1, MAX_DOCUMENT_CHARACTERS)
        end = end if end > 0 else MAX_DOCUMENT_CHARACTERS
        yield text[:end]
        text = text[end:].lstrip(" ")
        tally.cut_documents += 1
    if text:
        yield text
