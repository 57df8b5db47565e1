"""Texts beside the corpus, read whole by its readers: test sets, and what vocabularies are compared on."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.compression import DamagedFile
from megadeberta.data_prep.converted import KEY, ConvertedStream
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.sources import Source, find_sources
from megadeberta.errors import DataError


def sources_of(paths: Iterable[Path], read: ReadOptions) -> list[Source]:
    """The files that these files and folders are.

    Raises:
        DataError: one is not there, or of a format that is not read.
    """
    return find_sources(tuple(paths), split="test", options=read, outside=Path(os.devnull)).sources


def read_texts(paths: Iterable[Path], read: ReadOptions, *, option: str) -> Iterator[str]:
    """The documents of all files, one after the other.

    Args:
        option: that names the files on the command line, for errors.

    Raises:
        DataError: a file cannot be read, or some of its lines cannot be used.
    """
    for source in sources_of(paths, read):
        yield from _texts(source, read, option)


def _texts(source: Source, read: ReadOptions, option: str) -> Iterator[str]:
    tally = Tally()
    stream = ConvertedStream(source.path, source.compression, source.file_format, read, tally=tally)
    try:
        while lines := stream.read(1 << 20):
            yield from (text for line in lines.splitlines() if (text := json.loads(line)[KEY]))
    except DamagedFile as damage:
        raise DataError(f"{option} {source.path}: {damage}; fetch it again") from damage
    finally:
        stream.close()
    if tally.rejected:
        raise DataError(
            f"{option} {source.path}: {tally.rejected} of its lines cannot be used "
            f"({', '.join(kind for kind in tally.counts)}); check --text-key, which holds for these files too"
        )
