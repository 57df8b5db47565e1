"""A set of several token files, none above a limit, read as the one file that they are when laid end to end."""

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megadeberta.data.block_cache import CacheSettings
from megadeberta.data.indexed import TokenShard
from megadeberta.data.shard_files import numbered, shard_file
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.steady_file import AGAIN, TokenBytes
from megadeberta.errors import DataError

_COUNTS = ("num_tokens", "num_documents", "num_sequences")


class JoinedShard(TokenShard):
    """``PREFIX-00000`` and so on, each a token file of its own, and ``PREFIX.json``. Made by ``TokenShard.open``."""

    def __init__(self, prefix: Path, manifest: ShardManifest, cache: CacheSettings) -> None:
        """
        Raises:
            DataError: a file is missing, damaged, or of another set.
        """
        self._parts: list[TokenShard] = []
        self._starts = np.cumsum([0, *(file.num_tokens for file in manifest.files)]).tolist()
        try:
            for number in range(len(manifest.files)):
                self._parts.append(TokenShard.open(numbered(prefix, number), reads_index=False, cache=cache))
            _check_parts(shard_file(prefix, "json"), manifest, [part.manifest for part in self._parts])
        except BaseException:
            self.close()
            raise
        size = np.dtype(manifest.dtype).itemsize
        joined = _JoinedBytes(shard_file(prefix, "bin"), [part.token_bytes for part in self._parts], self._starts, size)
        super().__init__(prefix, manifest=manifest, tokens=joined, sums=None, cache=cache)

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        bounds = [part._bounds[:-1] + start for part, start in zip(self._parts, self._starts, strict=False)]
        found = np.concatenate([*bounds, np.array([self.num_tokens], np.int64)])
        found.setflags(write=False)
        return found

    def document_ends(self) -> Iterator[np.ndarray]:
        for part, start in zip(self._parts, self._starts, strict=False):
            for ends in part.document_ends():
                yield ends + start

    @property
    def is_remote(self) -> bool:
        return any(part.is_remote for part in self._parts)

    @property
    def plan_place(self) -> tuple[Path, Path]:
        if self.is_remote:
            return self._cache.folder / self.manifest.idx_sha256[:32], self._parts[0].plan_place[1]
        return self._prefix, shard_file(self._prefix, "json")

    def read_ahead(self, runs: Sequence[tuple[int, int]]) -> None:
        for number, (_, inside) in self._by_part(runs).items():
            self._parts[number].read_ahead(inside)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _read_group(self, runs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        pieces: list[list[np.ndarray]] = [[] for _ in runs]
        # Files in their order, so that a run across a border has its pieces in theirs.
        for number, (places, inside) in sorted(self._by_part(runs).items()):
            for place, tokens in zip(places, self._parts[number].read_runs(inside), strict=True):
                pieces[place].append(tokens)
        return [found[0] if len(found) == 1 else np.concatenate([np.empty(0, self.dtype), *found]) for found in pieces]

    def _by_part(self, runs: Sequence[tuple[int, int]]) -> dict[int, tuple[list[int], list[tuple[int, int]]]]:
        """Of every file that has tokens of the runs: which runs, and where their tokens are in the file."""
        found: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        for place, (start, stop) in enumerate(runs):
            while start < stop:
                number = bisect_right(self._starts, start) - 1
                first, end = self._starts[number], min(stop, self._starts[number + 1])
                places, inside = found.setdefault(number, ([], []))
                places.append(place)
                inside.append((start - first, end - first))
                start = end
        return found

    def _check_header(self) -> None:
        """Nothing: each file checked its own."""

    def _verify_tokens(self) -> None:
        try:
            super()._verify_tokens()
        except DataError:
            for part in self._parts:
                part._verify_tokens()  # the file that is damaged is named
            raise

    def _verify_sums(self) -> None:
        for part in self._parts:
            part._verify_sums()


class _JoinedBytes:
    """The bytes of all files, end to end."""

    advice = f"the file is damaged; {AGAIN}"

    def __init__(self, path: Path, files: Sequence[TokenBytes], starts: Sequence[int], item: int) -> None:
        """``starts``: the first token of each file, and where the last one ends; ``item``: bytes of a token."""
        self.path = path
        self._files = files
        self._starts = [start * item for start in starts]

    def fill(self, target: np.ndarray, offset: int) -> None:
        view = target.reshape(-1).view(np.uint8)
        while len(view):
            number = bisect_right(self._starts, offset) - 1
            count = min(len(view), self._starts[number + 1] - offset)
            self._files[number].fill(view[:count], offset - self._starts[number])
            view, offset = view[count:], offset + count

    def fill_all(self, targets: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
        for target, offset in zip(targets, offsets, strict=True):
            self.fill(target, offset)

    def ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: each file is read ahead by itself."""

    def forget(self, offset: int, length: int) -> None:
        """Nothing: each file checks what it reads."""

    def close(self) -> None:
        for file in self._files:
            file.close()


def _check_parts(path: Path, manifest: ShardManifest, parts: Sequence[ShardManifest]) -> None:
    """That the files are those of the set, and that it is made of them and nothing else."""
    for number, (file, part) in enumerate(zip(manifest.files, parts, strict=True)):
        found = (part.content, part.num_tokens, part.num_documents, part.dtype, part.tokenizer_sha256)
        promised = (file.content, file.num_tokens, file.num_documents, manifest.dtype, manifest.tokenizer_sha256)
        if found != promised:
            name = numbered(path.with_suffix(""), number).name
            raise DataError(f"{path}: its file {name} is {part.content[:12]}…, not {file.content[:12]}…; {AGAIN}")
    totals = tuple(sum(getattr(part, name) for part in parts) for name in _COUNTS)
    promised_totals = tuple(getattr(manifest, name) for name in _COUNTS)
    if totals != promised_totals:
        raise DataError(f"{path}: {', '.join(_COUNTS)} are {promised_totals}, and {totals} in its files; {AGAIN}")
    largest = max(part.max_token_id for part in parts)
    if largest != manifest.max_token_id:
        raise DataError(f"{path}: largest token id {manifest.max_token_id}, and {largest} in its files; {AGAIN}")
