"""A tar archive: every member is read as what its first bytes say, in the order of the archive."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import COMPRESSIONS, compression_of
from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.options import ReadOptions
from megadeberta.errors import DataError


def _texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or PurePosixPath(member.name).name.startswith("."):
                    continue
                yield from _member_texts(member.name, content, options, tally)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"the tar archive is damaged ({error}); fetch it again or leave it out") from error


def _member_texts(name: str, content: IO[bytes], options: ReadOptions, tally: Tally) -> Iterator[str]:
    from megadeberta.data_prep.detect import HEAD_BYTES, Refusal, detect  # the table of formats holds this module
    from megadeberta.data_prep.formats.table import what_is_missing

    stream = io.BufferedReader(cast(io.RawIOBase, content), HEAD_BYTES)
    if packed := compression_of(stream.peek(8)[:8]):
        stream = io.BufferedReader(_Unpacked(stream, packed), HEAD_BYTES)
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


class _Unpacked(io.RawIOBase):
    """A compressed member as a stream of its plain bytes."""

    def __init__(self, file: BinaryIO, compression: str) -> None:
        self._read = COMPRESSIONS[compression].open(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        chunk = self._read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


TAR = Format(name="tar", summary="a tar archive", endings=(".tar", ".tgz"), texts=_texts)
