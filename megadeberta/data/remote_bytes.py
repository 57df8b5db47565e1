"""A file behind an address, read like a ``SteadyFile``: from the local cache, or by ranges fetched side by side."""

import functools
import hashlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from megadeberta.data.block_cache import BlockCache, CacheSettings, locked
from megadeberta.data.steady_file import AGAIN
from megadeberta.errors import DataError
from megadeberta.remote.path import RemotePath
from megadeberta.storage import write_file

Range = tuple[int, int]
"""Offset and length in bytes."""

_LOOK_AGAIN_SECONDS = 1.0

logger = logging.getLogger(__name__)


class RemoteBytes:
    """The bytes of a remote file of a known size and SHA-256.

    What the cache has room for is brought by a thread of one process of the machine, from the start of the file to its
    end. What is not there yet, or has no room, is fetched by exact ranges, all of a call at once; ``ahead`` starts that
    before the call.
    """

    advice = "the object changed since it was prepared, or is damaged: put the set there again, and verify it there"

    def __init__(self, path: RemotePath, size: int, *, sha256: str, cache: CacheSettings) -> None:
        """
        Raises:
            DataError: not there, not to be reached, or not of ``size`` bytes.
        """
        self.path = path
        self._size = size
        try:
            found = path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{path}: not found, though its manifest is there; put the set there again") from error
        if found != size:
            raise DataError(f"{path}: {found} bytes, the manifest says {size}; {self.advice}")
        self._closed = threading.Event()
        self._ahead: dict[Range, tuple[Future[list[bytes]], int]] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="read-ahead")
        self._settings, self._sha256 = cache, sha256

    @functools.cached_property
    def _cache(self) -> BlockCache | None:
        """Opened, and begun to be filled, by the first read: checks before a run take no room for what they check."""
        cache = BlockCache.open(self._settings, self._sha256[:32], self._size) if self._size else None
        if cache is not None:
            threading.Thread(target=self._fill_cache, args=(cache.again(),), daemon=True).start()
        return cache

    def ahead(self, ranges: Sequence[Range]) -> None:
        """Begin to fetch what ``fill_all`` will be asked for soon.

        Raises:
            StorageError: the folder for local copies cannot be written.
        """
        missing = [
            wanted for wanted in dict.fromkeys(ranges) if wanted not in self._ahead and not self._is_here(wanted)
        ]
        if missing:
            future = self._pool.submit(self._download, missing)
            self._ahead.update({wanted: (future, place) for place, wanted in enumerate(missing)})

    def fill(self, target: np.ndarray, offset: int) -> None:
        """As ``SteadyFile.fill``."""
        self.fill_all([target], [offset])

    def fill_all(self, targets: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
        """Read the bytes of every target, contiguous, from its offset.

        Raises:
            DataError: closed, not to be reached, or the object became shorter.
        """
        if self._closed.is_set():
            raise DataError(f"{self.path}: the shard was closed; open it again to read")
        wanted = [(offset, target.nbytes) for target, offset in zip(targets, offsets, strict=True)]
        self.ahead([one for one in wanted if one[1]])
        fetched: dict[Range, bytes] = {}
        for target, one in zip(targets, wanted, strict=True):
            view = target.data.cast("B") if one[1] else memoryview(b"")
            if not one[1] or (one not in self._ahead and one not in fetched and self._read_cached(view, one)):
                continue
            if one not in fetched:
                future, place = self._ahead.pop(one, (None, 0))
                fetched[one] = future.result()[place] if future else self._download([one])[0]
            view[:] = fetched[one]

    def forget(self, offset: int, length: int) -> None:
        """The cached copy of these bytes is not what was written: fetch them anew."""
        if self._cache is not None:
            self._cache.forget(offset, length)

    def close(self) -> None:
        """Release everything; harmless when already closed."""
        self._closed.set()
        self._ahead.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if cache := self.__dict__.pop("_cache", None):
            cache.close()

    def _is_here(self, wanted: Range) -> bool:
        return self._cache is not None and self._cache.has(*wanted)

    def _read_cached(self, view: memoryview, wanted: Range) -> bool:
        return self._cache is not None and self._cache.has(*wanted) and self._cache.read(view, wanted[0])

    def _download(self, ranges: Sequence[Range]) -> list[bytes]:
        return self._fetch([(offset, offset + length) for offset, length in ranges])

    def _fetch(self, borders: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            found = self.path.remote.read_ranges(borders)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be reached ({error.strerror}); check the network and the rights, then run the "
                "same command again"
            ) from error
        for content, (start, stop) in zip(found, borders, strict=True):
            if len(content) != stop - start:
                raise DataError(
                    f"{self.path}: bytes [{start}, {stop}) asked, {len(content)} came; {self.advice}, or give a server "
                    "that answers requests for ranges"
                )
        return found

    def _fill_cache(self, cache: BlockCache) -> None:
        try:
            # Again and again: the process that does it may end.
            while not self._closed.is_set() and next(cache.missing(), None) is not None:
                cache.fill(self._fetch, lambda: not self._closed.is_set())
                self._closed.wait(_LOOK_AGAIN_SECONDS)
        except (DataError, OSError) as error:
            if not self._closed.is_set():
                logger.warning("%s is read without more local copies: %s", self.path, error)
        finally:
            cache.close()


def local_copy(path: RemotePath, sha256: str, cache: CacheSettings) -> Path:
    """A small remote file as one of this machine, fetched once.

    Raises:
        DataError: not there, not to be reached, or of another SHA-256.
        StorageError: the folder cannot be written.
    """
    copy = cache.folder / f"{sha256[:32]}.{path.suffix.removeprefix('.')}"
    with locked(cache.folder):
        if not copy.exists():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
            if hashlib.sha256(content).hexdigest() != sha256:
                raise DataError(f"{path}: SHA-256 is not the manifest's; {RemoteBytes.advice}")
            write_file(copy, content)
    return copy
