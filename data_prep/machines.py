"""One corpus prepared by several machines: ``prep --part I/N`` encodes a part of the blocks, and merging joins them.

Which blocks a machine takes follows from the files alone, so N machines that see the same files agree without a word.
What a machine leaves in its folder is its finished blocks and ``part.json``, written last. Splitting, finding copies
and writing token files need all documents, and happen when the parts are merged: the bytes are those of one machine.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.data.index_layout import smallest_dtype
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.data_prep.bad_lines import CorpusTally, Tally
from megadeberta.data_prep.options import PrepOptions
from megadeberta.data_prep.parts import Counts, Part, PartStore
from megadeberta.data_prep.sources import Corpus, PassedOver, Source
from megadeberta.errors import DataError
from megadeberta.storage import storage_errors, write_file

RECORD = "part.json"
_FORMAT, _VERSION = "megadeberta-part", 1
_OPTIONS = TypeAdapter(PrepOptions)


@dataclass(frozen=True)
class MachinePart:
    """What one machine made: the contents of ``part.json``."""

    part: int
    of: int
    key: str
    """Name of the folder with its blocks."""
    agree: dict[str, Any]
    """What must be the same on all machines: options, files, tokenizer."""
    options: dict[str, Any]
    sources: list[list[Any]]
    """Name, split, format, compression and size of every file of the corpus, those of the other machines included."""
    passed_over: list[list[Any]]
    blocks: list[list[int]]
    """Number of the first source, offset in it, and number of the block, for each block."""
    damage: dict[str, Any]
    """Tallies of damage found while a large compressed file was unpacked, by the number of the source."""
    format: str = _FORMAT
    version: int = _VERSION


def write_record(folder: Path, part: MachinePart) -> None:
    """Mark the part in ``folder`` as whole.

    Raises:
        StorageError: the file system refused.
    """
    write_file(folder / RECORD, json.dumps(asdict(part)).encode())


def remove_record(folder: Path) -> None:
    """Mark the part in ``folder`` as unfinished.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(folder / RECORD):
        (folder / RECORD).unlink(missing_ok=True)


def is_part(folder: Path) -> bool:
    """Whether a machine wrote its part there."""
    return (folder / RECORD).is_file()


def plain_options(options: PrepOptions) -> dict[str, Any]:
    """As plain values."""
    return _OPTIONS.dump_python(options, mode="json")


def read_record(folder: Path) -> MachinePart:
    """The part in ``folder``.

    Raises:
        DataError: there is none, it is unfinished, or it is damaged.
    """
    path = folder / RECORD
    try:
        part = MachinePart(**json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the --output of `megadeberta prep --part`, after it ended"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is damaged; run that part again") from error
    if (part.format, part.version) != (_FORMAT, _VERSION):
        raise DataError(f"{path}: is {part.format} {part.version}, not {_FORMAT} {_VERSION}; run that part again")
    return part


class JoinedParts:
    """The parts of all machines as if one machine had made them; reads like a ``PartStore``."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read what each machine wrote.

        Raises:
            DataError: a part is missing, given twice, or of another corpus, tokenizer or option.
        """
        self._records = [read_record(folder) for folder in folders]
        _check_together(folders, self._records)
        self.tokenizer = PartStore(folders[0], self._records[0].key, dtype=np.dtype("<u2")).folder / TOKENIZER_FILE
        """The tokenizer all parts were made with."""
        tokenizer = load_tokenizer(self.tokenizer)
        if tokenizer.sha256 != self._records[0].agree["vocabulary"]["tokenizer"]:
            raise DataError(f"{self.tokenizer}: is not the tokenizer the part was made with; copy the folder again")
        dtype = smallest_dtype(tokenizer.vocab_size_needed)
        self._stores = [PartStore(f, record.key, dtype=dtype) for f, record in zip(folders, self._records, strict=True)]
        self._places: list[tuple[int, int]] = []  # by number: which store, and the number in it
        self.folder = self._stores[0].folder
        self.agree = self._records[0].agree
        self.folders = folders

    def options(self, **changes: Any) -> PrepOptions:
        """What the machines were asked to do, and ``changes``."""
        try:
            return replace(_OPTIONS.validate_python(self._records[0].options), **changes)
        except ValidationError as error:
            raise DataError(f"{self.folders[0] / RECORD}: its options are damaged; run that part again") from error

    def corpus(self) -> Corpus:
        """The files of the corpus; their paths are on the machines."""
        record = self._records[0]
        sources = [
            Source(Path(name), name, split, format_name, compression, size, 0)
            for name, split, format_name, compression, size in record.sources
        ]
        return Corpus(sources, [PassedOver(*about) for about in record.passed_over])

    def load(self) -> Iterator[Part]:
        """All parts in the order of the corpus, numbered in it; each is compared with its hash.

        Raises:
            DataError: a block is missing or damaged.
        """
        blocks = [
            (source, offset, store, number)
            for store, record in enumerate(self._records)
            for source, offset, number in record.blocks
        ]
        for _, _, store, number in sorted(blocks):
            part = self._stores[store].load(number)
            if part is None:
                raise DataError(
                    f"{self.folders[store]}: block {number} is missing or damaged; copy the folder again, .parts "
                    "included, or run that part again"
                )
            self._places.append((store, number))
            yield replace(part, number=len(self._places) - 1)

    def count(self, sources: list[Source]) -> tuple[Counts, CorpusTally]:
        """What all parts hold, and what of the corpus could not be used."""
        counts, tally = Counts(), CorpusTally([source.name for source in sources])
        for part in self.load():
            counts.add(part, sources[part.files[0].source].split)
            for file in part.files:
                tally.add(file.source, file.tally)
        for record in self._records:
            for source, damage in record.damage.items():
                tally.add(int(source), Tally.from_json(damage))
        return counts, tally

    def documents(self, number: int) -> np.ndarray:
        """``[D]`` records of a part: length and key of each document."""
        store, inside = self._places[number]
        return self._stores[store].documents(inside)

    def token_groups(self, number: int) -> Iterator[tuple[slice, np.ndarray]]:
        """See ``PartStore.token_groups``."""
        store, inside = self._places[number]
        yield from self._stores[store].token_groups(inside)

    def read_tokens(self, number: int, start: int, count: int) -> np.ndarray:
        """See ``PartStore.read_tokens``."""
        store, inside = self._places[number]
        return self._stores[store].read_tokens(inside, start, count)


def _check_together(folders: Sequence[Path], records: list[MachinePart]) -> None:
    first = records[0]
    for folder, record in zip(folders, records, strict=True):
        names = [name for name in first.agree if first.agree[name] != record.agree.get(name)]
        if names:
            raise DataError(
                f"{folder} and {folders[0]} were prepared with other {', '.join(names)}; all parts need the same "
                "files, tokenizer and options: run one of them again"
            )
        if record.of != first.of:
            raise DataError(f"{folder} is part {record.part}/{record.of}, and {folders[0]} {first.part}/{first.of}")
    there: dict[int, Path] = {}
    for folder, record in zip(folders, records, strict=True):
        if record.part in there:
            raise DataError(
                f"{folder} and {there[record.part]} are both part {record.part}/{record.of}; give each once"
            )
        there[record.part] = folder
    if missing := [f"{number}/{first.of}" for number in range(1, first.of + 1) if number not in there]:
        raise DataError(f"{len(missing)} of {first.of} parts are missing: {', '.join(missing[:8])}; give their folders")
