"""Finished blocks on disk: what lets a killed run go on where it was.

Part ``N`` is ``part-N.tokens`` (ids back to back), ``part-N.documents`` (length and content key of each document) and
``part-N.json``, the completion mark: written last, with the BLAKE2 of both files. A part without a matching mark does
not exist. D documents, T tokens.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.storage import open_new, storage_errors, temporary_path

DOCUMENT_RECORD = np.dtype([("length", "<i4"), ("key", "<u8")])
FOLDER = ".parts"
_GROUP_TOKENS = 2 << 20


@dataclass(frozen=True)
class PartOf:
    """What a finished block holds of one source."""

    source: int
    num_tokens: int
    num_unknown: int
    tally: Tally


@dataclass(frozen=True)
class Part:
    """A finished block."""

    number: int
    num_words: int
    """What spaces separate."""
    files: tuple[PartOf, ...]

    @property
    def num_tokens(self) -> int:
        return sum(file.num_tokens for file in self.files)

    @property
    def num_unknown(self) -> int:
        return sum(file.num_unknown for file in self.files)

    def mark(self, digest: str) -> bytes:
        """The completion mark."""
        files = [{**vars(file), "tally": file.tally.to_json()} for file in self.files]
        return json.dumps({**vars(self), "files": files, "digest": digest}).encode()

    @classmethod
    def from_mark(cls, fields: dict[str, Any]) -> Self:
        """The part that ``mark`` described; raises KeyError, TypeError or ValueError for what is none."""
        files = [PartOf(**{**file, "tally": Tally.from_json(file["tally"])}) for file in fields["files"]]
        return cls(fields["number"], fields["num_words"], tuple(files))


class Counts:
    """The finished blocks of a run, without what only one block needs."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = {"train": [], "valid": []}
        """Of the parts of each split, in order."""
        self.num_tokens = 0
        self.num_unknown = 0
        self.num_words = 0
        self._unknown = Counter[int]()
        self._tokens = Counter[int]()

    def add(self, part: Part, split: str) -> None:
        """Count the next part."""
        self.numbers[split].append(part.number)
        self.num_tokens += part.num_tokens
        self.num_unknown += part.num_unknown
        self.num_words += part.num_words
        for file in part.files:
            self._tokens[file.source] += file.num_tokens
            self._unknown[file.source] += file.num_unknown

    def most_unknown(self) -> tuple[int, float]:
        """The source with the most unknown tokens, and which fraction of its tokens they are."""
        source, unknown = self._unknown.most_common(1)[0]
        return source, unknown / max(1, self._tokens[source])


@dataclass(frozen=True)
class Drafts:
    """Files of a part that is not finished."""

    tokens: Path
    documents: Path


class PartStore:
    """The parts of one run, in a folder named after everything the parts depend on."""

    def __init__(self, output: Path, key: str, *, dtype: np.dtype) -> None:
        self.folder = output / FOLDER / key
        self.dtype = dtype

    def create(self) -> None:
        """Make the folder, and remove those of runs with other options.

        Raises:
            StorageError: not writable.
        """
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in self.folder.parent.iterdir():
                if other != self.folder:
                    shutil.rmtree(other)

    def remove(self) -> None:
        """Remove all parts of all runs."""
        with storage_errors(self.folder):
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    def path(self, number: int, suffix: str) -> Path:
        """Where a file of part ``number`` is."""
        return self.folder / f"part-{number:06d}.{suffix}"

    def load(self, number: int) -> Part | None:
        """The part, if it is whole; the tokens are read once to compare their hash."""
        try:
            fields: dict[str, Any] = json.loads(self.path(number, "json").read_bytes())
            digest = hashlib.blake2b()
            for suffix in ("tokens", "documents"):
                with self.path(number, suffix).open("rb") as file:
                    hashlib.file_digest(file, lambda: digest)
            if digest.hexdigest() != fields.pop("digest"):
                return None
            return Part.from_mark(fields)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drafts(self, number: int) -> Drafts:
        """Where a part's files are written before ``save``."""
        return Drafts(self.path(number, "draft-tokens"), self.path(number, "draft-documents"))

    def save(self, part: Part, drafts: Drafts) -> None:
        """Complete a part that was written to ``drafts``.

        Raises:
            StorageError: the file system refused; the part does not exist.
        """
        digest = hashlib.blake2b()
        mark = self.path(part.number, "json")
        with storage_errors(mark):
            for suffix, draft in (("tokens", drafts.tokens), ("documents", drafts.documents)):
                with draft.open("rb") as file:
                    hashlib.file_digest(file, lambda: digest)
                draft.replace(self.path(part.number, suffix))
            # Not synced: what a power cut takes away no longer matches the digest, and is computed again.
            with open_new(temporary_path(mark)) as file:
                file.write(part.mark(digest.hexdigest()))
            temporary_path(mark).replace(mark)

    def documents(self, number: int) -> np.ndarray:
        """``[D]`` records of a part: length and key of each document."""
        return np.fromfile(self.path(number, "documents"), dtype=DOCUMENT_RECORD)

    def token_groups(self, number: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The part's tokens in bounded groups: a slice of its documents and their tokens ``[T]`` back to back."""
        ends = np.cumsum(self.documents(number)["length"], dtype=np.int64)  # [D]
        first = 0
        with self.path(number, "tokens").open("rb") as file:
            while first < len(ends):
                before = int(ends[first - 1]) if first else 0
                last = max(int(np.searchsorted(ends, before + _GROUP_TOKENS, side="right")), first + 1)
                yield slice(first, last), np.fromfile(file, dtype=self.dtype, count=int(ends[last - 1]) - before)
                first = last

    def read_tokens(self, number: int, start: int, count: int) -> np.ndarray:
        """``[count]`` tokens of a part, from its token ``start`` on."""
        offset = start * self.dtype.itemsize
        return np.fromfile(self.path(number, "tokens"), dtype=self.dtype, offset=offset, count=count)
