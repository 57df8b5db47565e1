"""Files of formats that are not lines of text, as a stream of JSON lines."""

import io
import json
from collections.abc import Iterator

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import DamagedFile, RawUnpacked, UnpackedStream, check_expansion
from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.options import ReadOptions
from megadeberta.errors import DataError
from megadeberta.remote.files import FilePath

KEY = "text"
"""Of the text in the JSON lines."""


class ConvertedStream:
    """Reads like ``UnpackedStream``; every line is the record of one document."""

    def __init__(
        self, path: FilePath, compression: str | None, file_format: Format, options: ReadOptions, *, tally: Tally
    ) -> None:
        """``tally``: counts what of the file cannot be used."""
        self._path = path
        self._max_expansion = options.max_expansion
        self._unpacked = UnpackedStream(path, compression, max_expansion=options.max_expansion)
        # Tables are read from their end; a compressed one cannot be, and its reader says so.
        self._file = path.open("rb") if compression is None else io.BufferedReader(RawUnpacked(self._unpacked), 1 << 20)
        self._is_compressed = compression is not None
        self._consumed = 0
        self._records = self._lines(file_format, options, tally)
        self._damage: DamagedFile | None = None
        self.produced = 0

    @property
    def consumed(self) -> int:
        """Bytes on disk so far."""
        position = self._unpacked.consumed if self._is_compressed else self._file.tell()
        self._consumed = max(self._consumed, position)  # tables are not read from front to back
        return self._consumed

    def read(self, size: int) -> bytes:
        """Some whole lines, about ``size`` bytes; ``b""`` at the end.

        Raises:
            DamagedFile: the file ends early, or expands beyond the allowed ratio.
            DataError: it is damaged, or has no such column.
        """
        if self._damage is not None:
            raise self._damage
        lines: list[bytes] = []
        held = 0
        try:
            while held < size and (line := next(self._records, None)) is not None:
                lines.append(line)
                held += len(line)
        except DamagedFile as damage:
            if not lines:
                raise
            self._damage = damage  # after what came before it
        self.produced += held
        check_expansion(self.produced, self.consumed, self._max_expansion)  # a table may be packed in itself
        return b"".join(lines)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._unpacked.close()

    def _lines(self, file_format: Format, options: ReadOptions, tally: Tally) -> Iterator[bytes]:
        try:
            for text in file_format.texts(self._file, options, tally):
                yield json.dumps({KEY: text}, ensure_ascii=False).encode() + b"\n"
        except DataError as error:
            raise error if str(error).startswith(str(self._path)) else DataError(f"{self._path}: {error}") from error
        except MemoryError as error:
            raise DataError(f"{self._path}: one of its records does not fit into memory; leave it out") from error
