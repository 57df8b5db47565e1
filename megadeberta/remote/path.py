"""Addresses as paths: ``s3://bucket/set/train`` in a recipe is read by the same code as a folder of this machine."""

import io
import os
from collections.abc import Generator
from pathlib import Path, PosixPath
from typing import Any, cast

from megadeberta.remote.address import keep_empty_host, read_address
from megadeberta.remote.files import RemoteFile, remote_address


class RemotePath(PosixPath):
    """A path whose text is an address, and whose bytes fsspec reads. Nothing can be written to it.

    A ``Path``, so that recipes, token files and tokenizers have one type for both.
    """

    def __str__(self) -> str:
        return str(read_address(super().__str__()))

    def __fspath__(self) -> str:
        return str(self)

    @property
    def remote(self) -> RemoteFile:
        """The file itself.

        Raises:
            DataError: a package is missing that reaches it.
        """
        found = remote_address(self)
        assert found is not None
        return found

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Itself: an address has no links."""
        return self

    def exists(self, **options: Any) -> bool:
        return self.remote.exists()

    def is_file(self, **options: Any) -> bool:
        return self.remote.exists() and not self.remote.is_dir()

    def is_dir(self, **options: Any) -> bool:
        return self.remote.exists() and self.remote.is_dir()

    def stat(self, **options: Any) -> os.stat_result:
        """Only its size is told.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it cannot be reached.
        """
        if not self.remote.exists():
            raise FileNotFoundError(2, "No such file", str(self))
        return os.stat_result((0,) * 6 + (self.remote.stat().st_size,) + (0,) * 3)

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """To read.

        Raises:
            OSError: whatever went wrong, at opening and at every read.
        """
        buffered = io.BufferedReader(cast(io.RawIOBase, self.remote.open("rb")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

    def read_bytes(self) -> bytes:
        return self.remote.read_whole()

    def glob(self, pattern: str, **options: Any) -> Generator["RemotePath", None, None]:
        """Nothing: a listing of a bucket may be endless, and this one is for hints."""
        yield from ()


def as_path(given: Any) -> Any:
    """A text or path as the path it stands for; anything else, which is no path, as it is."""
    if isinstance(given, RemotePath) or not isinstance(given, str | Path) or not given:
        return given
    path = Path(keep_empty_host(given))
    return RemotePath(path) if remote_address(path, check=False) else path
