"""The files of a corpus: found, told apart by their first bytes, and opened as a stream of plain bytes."""

import difflib
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from megadeberta.data_prep.options import InputFormat
from megadeberta.errors import DataError

_JSON_ENDINGS = {".jsonl", ".ndjson", ".json"}
_TEXT_ENDINGS = {".txt", ".text", ".raw", ".md"}
_COMPRESSED_ENDINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN_MAGIC = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "7-zip",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BOMB_FLOOR = 16 << 20
"""Expansion is judged only beyond this much text: below it no harm is done."""
_ZSTD_STEP = 2048  # one RLE block of 4 bytes gives 128 KiB, so this bounds one step at 64 MiB


@dataclass(frozen=True)
class Source:
    """One file of the corpus. ``size`` is its size on disk; ``name`` is relative to the folder that was given."""

    path: Path
    name: str
    split: str
    is_json: bool
    compression: str | None
    size: int
    mtime_ns: int


class DamagedFile(Exception):
    """A compressed file that ends early or expands too far; what came before that is usable."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def find_sources(corpora: Iterable[Path], *, split: str, input_format: InputFormat, outside: Path) -> list[Source]:
    """All files of ``corpora``, folders walked in the order of their names.

    Args:
        outside: folder whose files are never taken (where the shards go).

    Raises:
        DataError: a path that is not there, an empty folder, a file given twice or of a kind that is not text.
    """
    sources = [
        _describe(path, name=name, split=split, input_format=input_format)
        for corpus in corpora
        for path, name in _files(corpus, outside.resolve())
    ]
    seen: dict[Path, Path] = {}
    for source in sources:
        twin = seen.setdefault(source.path.resolve(), source.path)
        if twin is not source.path:
            raise DataError(f"{source.path} is given twice (also as {twin}); its text would count double: name it once")
    return sources


def _files(corpus: Path, outside: Path) -> Iterator[tuple[Path, str]]:
    if corpus.is_file():
        yield corpus, corpus.name
        return
    if not corpus.is_dir():
        raise DataError(f"{corpus}: not found{_nearest(corpus)}")
    count = 0
    for folder, folders, names in os.walk(corpus, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(folder).resolve() == outside:
            folders.clear()
            continue
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and _text_ending(path) in _JSON_ENDINGS | _TEXT_ENDINGS and path.is_file():
                count += 1
                yield path, str(path.relative_to(corpus.parent))
    if count == 0:
        endings = " ".join(sorted(_TEXT_ENDINGS | _JSON_ENDINGS))
        raise DataError(f"{corpus}: no corpus file in this folder; looked for {endings}, also with .gz or .zst")


def _nearest(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    near = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} has nothing of a similar name"


def _text_ending(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in _COMPRESSED_ENDINGS:
        endings.pop()
    return endings[-1] if endings else ""


def _describe(path: Path, *, name: str, split: str, input_format: InputFormat) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    promised = _COMPRESSED_ENDINGS.get(path.suffix.lower())
    if promised and not compression:
        raise DataError(f"{path}: ends in {path.suffix} but holds no {promised} data; fetch it again or rename it")
    foreign = next((kind for magic, kind in _FOREIGN_MAGIC.items() if head.startswith(magic)), None)
    if foreign:
        raise DataError(f"{path}: is {foreign}; unpack it to text or JSON lines (plain, .gz or .zst) first")
    if head.startswith(_UTF16_MARKS):
        raise DataError(f"{path}: looks like UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
    is_json = input_format is InputFormat.JSONL or (
        input_format is InputFormat.AUTO and _text_ending(path) in _JSON_ENDINGS
    )
    return Source(path, name, split, is_json, compression, status.st_size, status.st_mtime_ns)


class UnpackedStream:
    """The plain bytes of a compressed source, with the guards a hostile file needs.

    ``consumed`` and ``produced`` are the compressed and plain bytes so far.
    """

    def __init__(self, source: Source, *, max_expansion: int) -> None:
        self._source = source
        self._max_expansion = max_expansion
        self._file: BinaryIO = source.path.open("rb")
        # read1 hands out what precedes damage; read would lose it with the exception.
        self._read = gzip.GzipFile(fileobj=self._file).read1 if source.compression == "gzip" else self._read_zstd
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_frame_open = False
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
        except (zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            # A wrong checksum comes at the end of text that may have been wrong for long: none of it can be used.
            raise DataError(
                f"{self._source.path}: the compressed data is damaged ({error}); fetch the file again or leave it out"
            ) from error
        except OSError as error:
            raise DataError(f"{self._source.path}: reading failed ({error.strerror or error})") from error
        self.produced += len(chunk)
        if self.produced > max(BOMB_FLOOR, self._max_expansion * self.consumed):
            raise DamagedFile(
                "decompression_bomb",
                f"{self.consumed} bytes gave more than {self._max_expansion} times as much text; "
                "--max-expansion raises the limit",
            )
        return chunk

    def close(self) -> None:
        self._file.close()

    def _read_zstd(self, size: int) -> bytes:
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
        """Decompress one step; a file may hold several frames one after another."""
        pieces = []
        while compressed:
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            pieces.append(self._frame.decompress(compressed))
            self._is_frame_open = not self._frame.eof
            compressed = self._frame.unused_data if self._frame.eof else b""
        return b"".join(pieces)
