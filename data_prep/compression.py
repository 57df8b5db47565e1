"""Compressed files as streams of plain bytes, with the guards that a damaged or hostile file needs."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

from megadeberta.errors import DataError
from megadeberta.remote.files import FilePath

BOMB_FLOOR = 16 << 20
"""Expansion is judged only beyond this much text: below it no harm is done."""
_ZSTD_STEP = 2048  # one RLE block of 4 bytes gives 128 KiB, so this bounds one step at 64 MiB
_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes; the default of the library is 128 MiB
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame that holds no text: pzstd begins with one."""
_DAMAGE = (zlib.error, gzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError)

Read = Callable[[int], bytes]
"""Some plain bytes, about as many as asked at most; ``b""`` at the end; EOFError if the file ends early."""


@dataclass(frozen=True)
class Compression:
    """One way in which files are compressed."""

    name: str
    endings: tuple[str, ...]
    magic: bytes
    """First bytes of such a file."""
    open: Callable[[BinaryIO], Read]


class DamagedFile(Exception):
    """A compressed file that ends early or expands too far; what came before that is usable."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _ZstdFrames:
    """zstd frames one after another. The library's own reader takes a file that ends early for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = self._new_frame()
        self._is_frame_open = False

    @staticmethod
    def _new_frame() -> "zstandard.ZstdDecompressionObj":
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        total = 0
        while total < size:
            compressed = self._file.read(_ZSTD_STEP)
            if not compressed:
                if self._is_frame_open and not pieces:
                    raise EOFError
                break
            piece = self._feed(compressed)
            pieces.append(piece)
            total += len(piece)
        return b"".join(pieces)

    def _feed(self, compressed: bytes) -> bytes:
        pieces = []
        while compressed:
            if self._frame.eof:
                self._frame = self._new_frame()
            pieces.append(self._frame.decompress(compressed))
            self._is_frame_open = not self._frame.eof
            compressed = self._frame.unused_data if self._frame.eof else b""
        return b"".join(pieces)


# read1 hands out what precedes damage; read would lose it with the exception.
COMPRESSIONS = {
    compression.name: compression
    for compression in (
        Compression("gzip", (".gz",), b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file).read1),
        Compression("zstd", (".zst", ".zstd"), b"\x28\xb5\x2f\xfd", lambda file: _ZstdFrames(file).read),
        Compression("bzip2", (".bz2",), b"BZh", lambda file: bz2.BZ2File(file).read1),
        Compression("xz", (".xz",), b"\xfd7zXZ\x00", lambda file: lzma.LZMAFile(file).read1),  # noqa: SIM115, closed with its file
    )
}
"""By name; all that ``prep`` unpacks."""


def compression_of(head: bytes) -> str | None:
    """The name of the compression of a file that begins with ``head``; None if it is plain."""
    if _SKIPPABLE.match(head):
        return "zstd"
    return next((one.name for one in COMPRESSIONS.values() if head.startswith(one.magic)), None)


def compression_of_ending(ending: str) -> str | None:
    """The name of the compression that a file's ending (".gz") promises; None if none."""
    return next((one.name for one in COMPRESSIONS.values() if ending.lower() in one.endings), None)


def check_expansion(produced: int, consumed: int, most: int) -> None:
    """Refuse what gives more than ``most`` times as much text as it has bytes.

    Raises:
        DamagedFile: it does, beyond ``BOMB_FLOOR``.
    """
    if produced > max(BOMB_FLOOR, most * consumed):
        raise DamagedFile(
            "decompression_bomb",
            f"{consumed} bytes gave more than {most} times as much text; --max-expansion raises the limit",
        )


class UnpackedStream:
    """The plain bytes of one file, compressed or not.

    ``consumed`` and ``produced`` are the bytes on disk and the plain bytes so far.
    """

    def __init__(
        self, path: FilePath, compression: str | None, *, max_expansion: int, file: BinaryIO | None = None
    ) -> None:
        """``file``: what to read instead of opening ``path``, which then only names it in messages."""
        self._path = path
        self._max_expansion = max_expansion
        self._file: BinaryIO = path.open("rb") if file is None else file
        self._read: Read = COMPRESSIONS[compression].open(self._file) if compression else self._file.read
        self.produced = 0

    @property
    def consumed(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Some bytes, about ``size`` at most; ``b""`` at the end.

        Raises:
            DamagedFile: the file ends early, or expands beyond the allowed ratio.
            DataError: its checksums are wrong, or the disk cannot be read.
        """
        try:
            chunk = self._read(size)
        except EOFError as error:
            raise DamagedFile("truncated_file", "the compressed data ends early") from error
        except _DAMAGE as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # how bz2 says that its data is damaged
                raise self._damaged(error) from error
            raise DataError(f"{self._path}: reading failed ({error.strerror or error})") from error
        self.produced += len(chunk)
        check_expansion(self.produced, self.consumed, self._max_expansion)
        return chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _damaged(self, error: Exception) -> DataError:
        # A wrong checksum comes at the end of text that may have been wrong for long: none of it can be used.
        return DataError(
            f"{self._path}: the compressed data is damaged ({error}); fetch the file again or leave it out"
        )


class RawUnpacked(io.RawIOBase):
    """An ``UnpackedStream`` as the standard library wants it."""

    def __init__(self, stream: UnpackedStream) -> None:
        self._stream = stream
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._left or self._stream.read(len(buffer))
        size = min(len(chunk), len(buffer))
        buffer[:size] = chunk[:size]
        self._left = chunk[size:]
        return size
