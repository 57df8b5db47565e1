"""Reading finished sets, document after document, with bounded memory. D documents, T tokens."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.indexed import TokenShard
from megadeberta.data.missing import check_prepared_folder
from megadeberta.data.shard_files import SUFFIXES, check_prefix, shard_file
from megadeberta.data.shard_manifest import ShardSource
from megadeberta.data.source_list import read_sources
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.errors import DataError
from megadeberta.remote.path import RemotePath, as_path

_GROUP_TOKENS = 4 << 20


def locate(folder: Path) -> tuple[OutputFolder, dict[str, Path]]:
    """The folder of a finished set, here or behind an address, and the prefixes of the splits it has.

    Raises:
        DataError: nothing is there, or something else, or it cannot be reached.
    """
    folder = as_path(folder)
    output = OutputFolder(folder)
    if isinstance(folder, RemotePath):
        check_prefix(output.train)  # a server of files need not know folders
    else:
        check_prepared_folder(folder)
    prefixes = {
        split: prefix
        for split, prefix in output.prefixes.items()
        if split == "train" or any(shard_file(prefix, suffix).exists() for suffix in SUFFIXES)
    }
    return output, prefixes


@contextmanager
def no_copies() -> Iterator[CacheSettings]:
    """Settings to read what is behind an address now: no copy of an earlier run is taken for it, and none is kept."""
    with tempfile.TemporaryDirectory(prefix="megadeberta-") as folder:
        yield CacheSettings(Path(folder), 0)


class FinishedSet:
    """The tokenizer and the open token files of one folder; a context manager that closes them."""

    def __init__(self, folder: Path) -> None:
        """Open what ``megadeberta prep`` or ``megadeberta data`` made.

        Args:
            folder: may be an address that fsspec knows.

        Raises:
            DataError: it is no finished set, or a file is missing or damaged.
        """
        output, self.prefixes = locate(folder)
        self.folder = output.path
        self.tokenizer = load_tokenizer(output.tokenizer)
        self._stack = ExitStack()
        self.shards: dict[str, TokenShard] = {}
        try:
            cache = self._stack.enter_context(no_copies())
            for split, prefix in self.prefixes.items():
                self.shards[split] = self._stack.enter_context(TokenShard.open(prefix, cache=cache))
                self._check_tokenizer(split)
        except BaseException:
            self._stack.close()
            raise

    @property
    def content(self) -> dict[str, str]:
        """What identifies the data of each split."""
        return {split: shard.manifest.content for split, shard in self.shards.items()}

    def sources(self, *splits: str) -> list[ShardSource]:
        """The files the splits were made from, each once."""
        found = (source for s in splits if s in self.shards for source in self._sources(s))
        return list(dict.fromkeys(found))

    def _sources(self, split: str) -> Iterator[ShardSource]:
        return read_sources(self.prefixes[split], self.shards[split].manifest)

    def _check_tokenizer(self, split: str) -> None:
        made_with = self.shards[split].manifest.tokenizer_sha256
        if made_with != self.tokenizer.sha256:
            raise DataError(
                f"{self.folder}: its {split} was made with tokenizer {made_with[:12]}…, and the one in the folder is "
                f"{self.tokenizer.sha256[:12]}…; run `megadeberta verify {self.folder}`"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def document_lengths(shard: TokenShard) -> np.ndarray:
    """``[D]`` tokens of each document."""
    return np.diff(shard.document_offsets, append=shard.num_tokens)


def document_groups(shard: TokenShard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All documents in groups of about 4 Mi tokens: tokens ``[T]`` back to back, and lengths ``[D]``.

    Raises:
        DataError: the file is damaged.
    """
    starts = np.append(shard.document_offsets, shard.num_tokens)
    first = 0
    while first < shard.num_documents:
        last = int(np.searchsorted(starts, starts[first] + _GROUP_TOKENS, side="right")) - 1
        last = min(max(last, first + 1), shard.num_documents)
        yield shard.read_tokens(int(starts[first]), int(starts[last])), np.diff(starts[first : last + 1])
        first = last


def document_keys(tokens: np.ndarray, lengths: np.ndarray, *, purpose: str = "") -> np.ndarray:
    """``[D]`` 64 random bits of each document, a function of its ids alone; equal documents have equal keys.

    Args:
        tokens: ``[T]`` of all documents back to back.
        lengths: ``[D]``.
        purpose: keys of other purposes are unrelated; at most 16 characters.
    """
    ids = tokens.astype("<i4").tobytes()
    keys = np.empty(len(lengths), dtype=np.uint64)
    start, person = 0, purpose.encode()
    for number, size in enumerate((lengths * 4).tolist()):
        digest = hashlib.blake2b(ids[start : start + size], digest_size=8, person=person).digest()
        keys[number] = int.from_bytes(digest, "little")
        start += size
    return keys


def choose(tokens: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and lengths of the documents that ``chosen [D]`` names."""
    if chosen.all():
        return tokens, lengths
    return tokens[np.repeat(chosen, lengths)], lengths[chosen]
