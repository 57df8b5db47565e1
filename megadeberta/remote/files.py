"""Files behind an address, such as s3://bucket/corpus/*.jsonl.zst: fsspec reaches them.

A ``RemoteFile`` has those members of ``Path`` that readers use, so that they need not know where a file is.
"""

import functools
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar, Union, cast

from megadeberta.errors import DataError
from megadeberta.remote.address import Address, read_address

_TIMES = 3
_PAUSE_SECONDS = 0.1
Result = TypeVar("Result")
_AT_ONCE = 4 << 20
_EXTRA = "'megadeberta[remote]'"
_NEEDS = {
    "s3": ("s3fs", _EXTRA),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "hf": ("huggingface_hub", "huggingface_hub"),
    "http": ("aiohttp", _EXTRA),
    "https": ("aiohttp", _EXTRA),
}
"""Package that a protocol needs beside fsspec, and what to install for it."""


class Facts(NamedTuple):
    """What ``Path.stat`` says of a file here."""

    st_size: int
    st_mtime_ns: int
    """Of a remote file a number that is another one when the file is."""


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder behind an address."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return PurePosixPath(self.address).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.address).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.address).suffixes

    def resolve(self) -> "RemoteFile":
        return self

    def open(self, mode: str = "rb") -> BinaryIO:
        """The bytes of the file, which can be searched.

        Raises:
            OSError: whatever went wrong, at opening and at every read.
        """
        assert mode == "rb"
        system, path = _reach(self.address)
        with _as_os_error(self.address):
            file = system.open(path, "rb", block_size=_AT_ONCE)
        return cast(BinaryIO, _RemoteStream(file, self.address))

    def stat(self) -> Facts:
        """Size and state.

        Raises:
            DataError: it is not there, or its size is unknown.
        """
        system, path = _reach(self.address)
        with _as_data_error(self.address):
            facts = system.info(path)
            state = system.ukey(path)
        if facts.get("size") is None:
            raise DataError(f"{self.address}: the server does not say how large it is; copy it to a folder first")
        return Facts(int(facts["size"]), int.from_bytes(hashlib.sha256(str(state).encode()).digest()[:7], "little"))

    def exists(self) -> bool:
        """Whether it is there.

        Raises:
            DataError: it cannot be reached.
        """
        system, path = _reach(self.address)
        with _as_data_error(self.address):
            try:
                system.info(path)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec says "not found" of whatever went wrong with https
                if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404:
                    return False
                raise cause from None
        return True

    def read_whole(self) -> bytes:
        """All its bytes.

        Raises:
            OSError: whatever went wrong.
        """
        system, path = _reach(self.address)
        return tried_again(lambda: bytes(system.cat_file(path)), self.address)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes ``[start, stop)`` of every range, fetched side by side.

        Raises:
            OSError: whatever went wrong.
        """
        system, path = _reach(self.address)
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        paths = [path] * len(ranges)
        return tried_again(
            lambda: system.cat_ranges(paths, starts, stops, max_gap=None, on_error="raise"), self.address
        )

    def is_dir(self) -> bool:
        """Whether it is a folder.

        Raises:
            DataError: nothing is there, or it cannot be reached.
        """
        system, path = _reach(self.address)
        with _as_data_error(self.address):
            try:
                return bool(system.info(path)["type"] == "directory")
            except FileNotFoundError as error:
                why = f" ({_reason(error.__cause__)})" if error.__cause__ else ""
                raise DataError(f"{self.address}: not found{why}; check the address") from error

    def files(self) -> list[tuple["RemoteFile", str]]:
        """All files below a folder in the order of their names, and their names relative to the folder above it.

        Raises:
            DataError: it cannot be read.
        """
        system, path = _reach(self.address)
        with _as_data_error(self.address):
            found = sorted(system.find(path))
        above = str(PurePosixPath(path.rstrip("/")).parent)
        names = [(name, name.removeprefix(above).lstrip("/")) for name in found]
        return [
            (RemoteFile(system.unstrip_protocol(name)), short)
            for name, short in names
            if not any(step.startswith(".") for step in short.split("/"))
        ]


FilePath = Union[Path, RemoteFile]  # noqa: UP007 - a name for annotations, also of dataclasses that are pickled
"""Where a file of the corpus is."""


def remote_address(given: Path, *, check: bool = True) -> RemoteFile | None:
    """The address that a path of the command line or of a recipe is; None for a path of this machine.

    Args:
        check: whether its protocol is known and can be used here.

    Raises:
        DataError: a package is missing that reaches it.
    """
    address = read_address(str(given))
    if address is None or os.path.exists(os.path.join(*given.parts)):
        return None
    if check:
        _check_protocol(address)
    return RemoteFile(str(address))


@functools.lru_cache(maxsize=64)
def _check_protocol(address: Address) -> None:
    protocol = address.protocol
    for package, install in (("fsspec", _EXTRA), *([_NEEDS[protocol]] if protocol in _NEEDS else [])):
        if find_spec(package) is None:
            raise DataError(f"{address}: needs {package}: pip install {install}, or copy the files to a folder")
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        raise DataError(f"{address}: {protocol} is no known protocol; known: s3, gcs, hf, https and others") from error
    except ImportError as error:
        raise DataError(f"{address}: {_reason(error)}; or copy the files to a folder") from error


def expand(pattern: RemoteFile) -> list[RemoteFile]:
    """The files that a pattern names, by name; an address without marks as it is.

    Raises:
        DataError: none, or it cannot be reached.
    """
    if not any(mark in pattern.address for mark in "*[") and (
        "?" not in pattern.address or pattern.address.startswith("http")
    ):
        return [pattern]
    system, path = _reach(pattern.address)
    with _as_data_error(pattern.address):
        found = sorted(system.glob(path))
    if not found:
        raise DataError(f"{pattern.address}: no file matches this pattern")
    return [RemoteFile(system.unstrip_protocol(name)) for name in found]


def _reach(address: str) -> tuple[Any, str]:
    """The file system of an address, of which fsspec keeps one per process, and the path in it."""
    from fsspec.core import url_to_fs

    with _as_data_error(address):
        system, path = url_to_fs(address)
    return system, str(path)


@contextmanager
def _as_data_error(address: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{address}: cannot be reached ({_reason(error)}); check the address and the rights") from error


@contextmanager
def _as_os_error(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OSError(getattr(error, "errno", None) or 5, _reason(error), address) from error


def _reason(error: BaseException) -> str:
    # Each system has errors of its own: of botocore, aiohttp, google.auth and so on.
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return said or type(error).__name__


class _RemoteStream(io.RawIOBase):
    """A file of fsspec; a read that fails is tried again, and fails as ``OSError``."""

    def __init__(self, file: Any, address: str) -> None:
        self._file = file
        self._address = address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_error(self._address):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        place = self.tell()

        def again() -> bytes:
            self._file.seek(place)
            return bytes(self._file.read(size))

        return tried_again(again, self._address)

    def readinto(self, buffer: Any) -> int:
        chunk = self.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def tried_again(read: Callable[[], Result], address: str) -> Result:
    """What ``read`` gives, tried several times with a pause between.

    Raises:
        OSError: whatever went wrong the last time.
    """
    for number in range(_TIMES - 1):
        try:
            return read()
        except Exception:
            time.sleep(_PAUSE_SECONDS * 4**number)
    with _as_os_error(address):
        return read()
