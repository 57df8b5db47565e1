"""Cutting sources into blocks that one worker can take, always between two documents.

Documents never depend on where blocks end, so block size and number of workers leave no trace in the output. A large
plain file is cut by looking at a few bytes near each mark; small files are read several to a block. A compressed file,
or one that is turned into JSON lines, is read whole by one worker, unless it is so large a fraction of the corpus that
the other workers would wait for it: then it is unpacked here, block after block, into temporary files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import DamagedFile, UnpackedStream
from megadeberta.data_prep.converted import ConvertedStream
from megadeberta.data_prep.division import WorkDivision
from megadeberta.data_prep.formats.base import LINE_END
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.sources import UNPACKED, Source
from megadeberta.errors import DataError
from megadeberta.remote.files import FilePath
from megadeberta.storage import open_new, storage_errors

_WINDOW = 256 << 10
_OVERLAP = 4 << 10  # a cut longer than this may be missed, which makes a block longer and changes nothing else
_LARGEST_WHOLE = 2 << 30
"""A compressed file above this is cut, or a killed run would lose too much of it."""
_MOST_SECTIONS = 512
"""Files in one block: their tallies stay in memory until the block is done."""


@dataclass(frozen=True)
class Section:
    """A whole number of documents of source number ``source``: bytes ``[start, stop)`` of ``path``.

    ``offset`` is where it begins in the unpacked source.
    """

    source: int
    path: FilePath
    start: int
    stop: int
    offset: int
    is_packed: bool = False
    """The whole source as it is on disk: to be unpacked, or turned into JSON lines, by whoever reads it."""
    is_temporary: bool = False
    is_converted: bool = False
    """JSON lines that were made from a source of another format."""


@dataclass(frozen=True)
class Block:
    """What one worker takes at once: one section, or several small files of one given corpus, in order.

    ``consumed`` is its amount of the sources on disk, for the progress bar.
    """

    number: int
    sections: tuple[Section, ...]
    consumed: int

    @property
    def source(self) -> int:
        """Number of its first source: of the same split and given corpus as the others."""
        return self.sections[0].source


def choose_block_bytes(sources: list[Source]) -> int:
    """About 64 blocks in all, so that a few workers end together, but 1 to 32 MiB each."""
    return min(max(sum(source.size for source in sources) // 64, 1 << 20), 32 << 20)


def choose_whole_bytes(sources: list[Source]) -> int:
    """Largest compressed file that one worker reads whole: a sixteenth of the corpus, or less than a block of text."""
    total = sum(source.size for source in sources)
    return max(choose_block_bytes(sources) // UNPACKED, min(total // 16, _LARGEST_WHOLE))


class BlockCutter:
    """Iterates over the blocks of all sources, in order.

    Damage found while unpacking here is counted in ``damage`` under the number of the source.
    """

    def __init__(
        self,
        sources: list[Source],
        read: ReadOptions,
        *,
        block_bytes: int,
        whole_bytes: int,
        spool: Path,
        division: WorkDivision | None = None,
    ) -> None:
        """``division``: leave out the blocks of other machines; None = take all."""
        self._sources = sources
        self._read = read
        self._block_bytes = block_bytes
        self._whole_bytes = whole_bytes
        self._spool = spool
        self._division = division or WorkDivision()
        self._number = 0
        self.damage: dict[int, Tally] = {}

    def __iter__(self) -> Iterator[Block]:
        group = _Group(self._block_bytes)
        for number, source in enumerate(self._sources):
            is_packed = source.compression is not None or source.file_format.cuts is None
            if source.size > (self._whole_bytes if is_packed else self._block_bytes):
                yield from self._blocks_of(group.take())
                yield from self._cut(number, source)
                continue
            if not group.has_room(source):
                yield from self._blocks_of(group.take())
            group.add(Section(number, source.path, 0, source.size, 0, is_packed=is_packed), source)
        yield from self._blocks_of(group.take())

    def _blocks_of(self, sections: list[Section]) -> Iterator[Block]:
        size = sum(self._sources[section.source].text_bytes for section in sections)
        if sections and self._division.takes(size):
            yield self._block(*sections, consumed=sum(section.stop for section in sections))

    def _block(self, *sections: Section, consumed: int) -> Block:
        self._number += 1
        return Block(self._number - 1, sections, consumed)

    def _cut(self, number: int, source: Source) -> Iterator[Block]:
        cuts = source.file_format.cuts
        is_unpacked_here = cuts is None or source.compression is not None
        if is_unpacked_here and not self._division.takes(self._sources[number].text_bytes):
            return
        if cuts is None:
            tally = self.damage.setdefault(number, Tally())
            made = ConvertedStream(source.path, source.compression, source.file_format, self._read, tally=tally)
            yield from self._spool_blocks(number, made, LINE_END)
        elif source.compression:
            stream = UnpackedStream(source.path, source.compression, max_expansion=self._read.max_expansion)
            yield from self._spool_blocks(number, stream, cuts(self._read))
        else:
            yield from self._cut_plain(number, source, cuts(self._read))

    def _cut_plain(self, number: int, source: Source, cut: re.Pattern[bytes] | None) -> Iterator[Block]:
        start = 0
        try:
            with source.path.open("rb") as file:
                while start < source.size:
                    stop = find_cut(file, start + self._block_bytes, source.size, cut=cut)
                    if self._division.takes(stop - start):
                        yield self._block(Section(number, source.path, start, stop, start), consumed=stop - start)
                    start = stop
        except OSError as error:
            raise DataError(f"{source.path}: reading failed ({error.strerror}); check the disk") from error

    def _spool_blocks(
        self, number: int, stream: UnpackedStream | ConvertedStream, cut: re.Pattern[bytes] | None
    ) -> Iterator[Block]:
        offset = consumed = 0
        carry: bytes | None = b""
        is_converted = isinstance(stream, ConvertedStream)
        try:
            while carry is not None:
                path = self._spool / f"spool-{self._number:06d}"
                with storage_errors(path), open_new(path) as file:
                    carry, size = self._spool_block(stream, file, carry=carry, cut=cut, source=number)
                step, consumed = stream.consumed - consumed, stream.consumed
                section = Section(number, path, 0, size, offset, is_temporary=True, is_converted=is_converted)
                yield self._block(section, consumed=step)
                offset += size
        finally:
            stream.close()

    def _spool_block(
        self,
        stream: UnpackedStream | ConvertedStream,
        file: BinaryIO,
        *,
        carry: bytes,
        cut: re.Pattern[bytes] | None,
        source: int,
    ) -> tuple[bytes | None, int]:
        """Write one block. Returns the bytes that belong to the next (None at the end) and the size of this one."""
        file.write(carry)
        written, last_line_end, tail = len(carry), carry.rfind(b"\n") + 1, carry[-_OVERLAP:]
        while True:
            try:
                chunk = stream.read(_WINDOW)
            except DamagedFile as damage:
                self.damage.setdefault(source, Tally()).damaged(damage.kind, offset=stream.produced, detail=str(damage))
                # The line the damage fell into is of unknown content; whole lines before it are kept.
                file.truncate(last_line_end)
                return None, last_line_end
            if not chunk:
                return None, written
            if written >= self._block_bytes and cut:
                # A match that ends inside the tail was written already; one that spans the border counts.
                ends = (found.end() - len(tail) for found in cut.finditer(tail + chunk))
                split = next((end for end in ends if end >= 0), None)
                if split is not None:
                    file.write(chunk[:split])
                    return chunk[split:], written + split
            if (line_end := chunk.rfind(b"\n") + 1) > 0:
                last_line_end = written + line_end
            file.write(chunk)
            written += len(chunk)
            tail = (tail + chunk)[-_OVERLAP:]


class _Group:
    """Small files that are read one after another by one worker."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._sections: list[Section] = []
        self._size = 0
        self._of: tuple[str, int] | None = None

    def has_room(self, source: Source) -> bool:
        is_full = self._size >= self._block_bytes or len(self._sections) >= _MOST_SECTIONS
        return not self._sections or (not is_full and self._of == (source.split, source.corpus))

    def add(self, section: Section, source: Source) -> None:
        self._sections.append(section)
        self._size += source.text_bytes
        self._of = (source.split, source.corpus)

    def take(self) -> list[Section]:
        """The files so far; the group is empty then."""
        sections, self._sections, self._size = self._sections, [], 0
        return sections


def find_cut(file: BinaryIO, mark: int, size: int, *, cut: re.Pattern[bytes] | None) -> int:
    """The first cut at or after ``mark``, or ``size``."""
    if cut is None:
        return size
    tail = b""
    while mark < size:
        file.seek(mark)
        chunk = file.read(_WINDOW)
        if not chunk:
            break
        window = tail + chunk
        if found := cut.search(window):
            return mark - len(tail) + found.end()
        tail = window[-_OVERLAP:]
        mark += len(chunk)
    return size
