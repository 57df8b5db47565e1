"""A tar archive: every member is read as what its first bytes say, in the order of the archive."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Self, cast

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import (
    COMPRESSIONS,
    DamagedFile,
    RawUnpacked,
    UnpackedStream,
    compression_of,
)
from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.options import ReadOptions
from megadeberta.errors import DataError

_LONGEST_HEADER = 1 << 20
_LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def is_old_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar archive from before POSIX, which has no magic bytes."""
    try:
        return bool(tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").name)
    except (tarfile.TarError, ValueError):
        return False


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    try:
        # Archives laid end to end are read as one.
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, ignore_zeros=True) as archive:
            for member in _members(archive):
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or PurePosixPath(member.name).name.startswith("."):
                    continue
                if member.issparse():
                    raise DataError(f"its member {member.name} is stored with holes; unpack the archive")
                yield from _member_texts(member.name, content, options, tally)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"the tar archive is damaged ({error}); fetch it again or leave it out") from error


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from archive
    except (ValueError, OverflowError) as error:  # a number of a header that is none
        raise tarfile.ReadError(str(error)) from error


class _Member(tarfile.TarInfo):
    """A member, checked. The library takes a header that is none for the end: members after it would be lost unsaid."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error

    @classmethod
    def frombuf(cls, buffer: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buffer, encoding, errors)
        if member.type in _LONG_HEADERS + _LONG_NAMES and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def _member_texts(name: str, content: IO[bytes], options: ReadOptions, tally: Tally) -> Iterator[str]:
    try:
        yield from _texts_of_file(name, content, options, tally)
    except DamagedFile as damage:
        raise DamagedFile(damage.kind, f"its member {name}: {damage}") from damage


def _texts_of_file(name: str, content: IO[bytes], options: ReadOptions, tally: Tally) -> Iterator[str]:
    from megadeberta.data_prep.detect import HEAD_BYTES, Refusal, detect  # the table of formats holds this module
    from megadeberta.data_prep.formats.table import what_is_missing

    stream = io.BufferedReader(cast(io.RawIOBase, content), HEAD_BYTES)
    if packed := compression_of(stream.peek(8)[:8]):
        unpacked = UnpackedStream(Path(name), packed, max_expansion=options.max_expansion, file=cast(BinaryIO, stream))
        stream = io.BufferedReader(RawUnpacked(unpacked), HEAD_BYTES)
    found = detect(stream.peek(HEAD_BYTES), ending=_ending(name), text_keys=options.text_keys)
    if isinstance(found, Refusal):
        if found.remedy:
            raise DataError(f"its member {name} is {found.what}; {found.remedy}, or leave it out of the archive")
        tally.count("member_passed_over", line=0, offset=0, detail=f"{name}: {found.what}")
        return
    if missing := what_is_missing(found):
        raise DataError(f"its member {name}: {missing}")
    if found is TAR or found.needs:
        raise DataError(f"its member {name} is {found.summary}; unpack the archive")
    # Lines of its texts are counted when they are read again; here only what is left out.
    counts = Tally()
    yield from found.texts(cast(BinaryIO, stream), options, counts)
    tally.add_rejected(counts, name)


def _ending(name: str) -> str:
    endings = PurePosixPath(name).suffixes
    packed = {ending for one in COMPRESSIONS.values() for ending in one.endings}
    return next((ending.lower() for ending in reversed(endings) if ending.lower() not in packed), "")


TAR = Format(name="tar", summary="a tar archive", endings=(".tar", ".tgz"), texts=_texts)
