"""A file of a known size, read at any place; what it lacks is an error, never old memory and never a signal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from megadeberta.errors import DataError

AGAIN = "run `megadeberta prep` again"


class TokenBytes(Protocol):
    """What reading tokens needs of a file, wherever it is."""

    @property
    def path(self) -> Path:
        """For messages."""

    @property
    def advice(self) -> str:
        """What to do where its bytes are not those that were written."""

    def fill(self, target: np.ndarray, offset: int) -> None:
        """Read the bytes of ``target``, contiguous, from ``offset``."""

    def fill_all(self, targets: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
        """``fill`` for each target and offset."""

    def ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch what ``fill_all`` will be asked for soon."""

    def forget(self, offset: int, length: int) -> None:
        """A copy of these bytes is not what was written: fetch them anew."""

    def close(self) -> None:
        """Release it; harmless when already closed."""


class SteadyFile:
    """Opened for reading with ``pread``; nothing of it is mapped into memory."""

    advice = f"the file is damaged; {AGAIN}"
    """What to do where its bytes are not those that were written."""

    def __init__(self, path: Path, size: int) -> None:
        """
        Raises:
            DataError: not there, not readable, or not of ``size`` bytes.
        """
        self.path = path
        self._size = size
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataError(f"{path}: not found, though its manifest is there; {AGAIN}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
        found = os.fstat(self._descriptor).st_size
        if found != size:
            self.close()
            raise DataError(f"{path}: {found} bytes, the manifest says {size}; {AGAIN}")

    def fill(self, target: np.ndarray, offset: int) -> None:
        """Read the bytes of ``target``, contiguous, from ``offset``.

        Raises:
            DataError: closed, the disk cannot be read, or the file shrank since it was opened.
        """
        if self._descriptor < 0:
            raise DataError(f"{self.path}: the shard was closed; open it again to read")
        buffer = target.data.cast("B") if len(target) else memoryview(b"")
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise DataError(f"{self.path}: reading failed ({error.strerror}); check the disk") from error
            if count == 0:
                raise DataError(
                    f"{self.path}: bytes [{offset}, {offset + len(buffer)}) asked, the file now ends at "
                    f"{offset + done} (it had {self._size} when opened): it was cut while in use; {AGAIN}"
                )
            done += count

    def fill_all(self, targets: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
        """``fill`` for each target and offset."""
        for target, offset in zip(targets, offsets, strict=True):
            self.fill(target, offset)

    def ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: the system reads ahead itself."""

    def forget(self, offset: int, length: int) -> None:
        """Nothing: there is no other copy."""

    def close(self) -> None:
        """Release the file; harmless when already closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()
