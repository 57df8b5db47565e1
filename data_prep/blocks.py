"""Cutting sources into blocks that one worker can take, always between two documents.

Documents never depend on where blocks end, so block size and number of workers leave no trace in the output. A plain
file is cut by looking at a few bytes near each mark; a compressed one is unpacked once, block after block, into
temporary files, and so is one that is turned into JSON lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import DamagedFile, UnpackedStream
from megadeberta.data_prep.converted import ConvertedStream
from megadeberta.data_prep.formats.base import LINE_END
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.sources import Source
from megadeberta.errors import DataError
from megadeberta.storage import storage_errors

_WINDOW = 256 << 10
_OVERLAP = 4 << 10  # a cut longer than this may be missed, which makes a block longer and changes nothing else


@dataclass(frozen=True)
class Block:
    """Bytes ``[start, stop)`` of ``path``, a whole number of documents of source number ``source``.

    ``offset`` is where the block begins in the unpacked source; ``consumed`` is its share of the source on disk, for
    the progress bar.
    """

    number: int
    source: int
    path: Path
    start: int
    stop: int
    offset: int
    consumed: int
    is_temporary: bool
    is_converted: bool = False
    """JSON lines that were made from a source of another format."""


def choose_block_bytes(sources: list[Source]) -> int:
    """About 64 blocks in all, so that a few workers end together, but 1 to 32 MiB each."""
    return min(max(sum(source.size for source in sources) // 64, 1 << 20), 32 << 20)


class BlockCutter:
    """Iterates over the blocks of all sources, in order.

    Damage found while unpacking is counted in ``damage`` under the number of the source.
    """

    def __init__(self, sources: list[Source], read: ReadOptions, *, block_bytes: int, spool: Path) -> None:
        self._sources = sources
        self._read = read
        self._block_bytes = block_bytes
        self._spool = spool
        self._number = 0
        self.damage: dict[int, Tally] = {}

    def __iter__(self) -> Iterator[Block]:
        for number, source in enumerate(self._sources):
            cuts = source.file_format.cuts
            if cuts is None:
                tally = self.damage.setdefault(number, Tally())
                made = ConvertedStream(source.path, source.compression, source.file_format, self._read, tally=tally)
                yield from self._spool_blocks(number, made, LINE_END)
            elif source.compression:
                stream = UnpackedStream(source.path, source.compression, max_expansion=self._read.max_expansion)
                yield from self._spool_blocks(number, stream, cuts(self._read))
            else:
                yield from self._cut_plain(number, source, cuts(self._read))

    def _block(self, source: int, path: Path, *, start: int, stop: int, offset: int, consumed: int) -> Block:
        self._number += 1
        about = self._sources[source]
        is_converted = about.file_format.cuts is None
        return Block(self._number - 1, source, path, start, stop, offset, consumed, path != about.path, is_converted)

    def _cut_plain(self, number: int, source: Source, cut: re.Pattern[bytes] | None) -> Iterator[Block]:
        start = 0
        try:
            with source.path.open("rb") as file:
                while start < source.size:
                    stop = _find_cut(file, start + self._block_bytes, source.size, cut=cut)
                    yield self._block(number, source.path, start=start, stop=stop, offset=start, consumed=stop - start)
                    start = stop
        except OSError as error:
            raise DataError(f"{source.path}: reading failed ({error.strerror}); check the disk") from error

    def _spool_blocks(
        self, number: int, stream: UnpackedStream | ConvertedStream, cut: re.Pattern[bytes] | None
    ) -> Iterator[Block]:
        offset = consumed = 0
        carry: bytes | None = b""
        try:
            while carry is not None:
                path = self._spool / f"spool-{self._number:06d}"
                with storage_errors(path), path.open("wb") as file:
                    carry, size = self._spool_block(stream, file, carry=carry, cut=cut, source=number)
                step, consumed = stream.consumed - consumed, stream.consumed
                yield self._block(number, path, start=0, stop=size, offset=offset, consumed=step)
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


def _find_cut(file: BinaryIO, mark: int, size: int, *, cut: re.Pattern[bytes] | None) -> int:
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
