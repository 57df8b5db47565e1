"""Pass the ranks' output on, line by line: ``[rank k] `` before other ranks' lines, errors held back for the end."""

import os
import select
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from megadeberta.launcher.verdict import ERROR_PREFIX

_READ_SIZE = 65_536
_LONGEST_LINE = 1 << 20
_STDERR = 2
_UNREAD_SECONDS = 3.0


@dataclass
class _Stream:
    rank: int
    source: IO[bytes]
    target: int
    hold_errors: bool
    rest: bytes = b""


@dataclass
class Relay:
    """Reads the pipes of all ranks from one thread.

    A target that is closed (``| head``) is no reason to stop training: its lines are dropped.
    """

    errors: dict[int, list[str]] = field(default_factory=dict)
    tap: Callable[[int, str], bool] = lambda rank, line: False
    """Sees each line of standard error first; one that it takes for itself is not passed on."""
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def add(self, rank: int, source: IO[bytes], target: int, *, hold_errors: bool) -> None:
        """Relay ``source`` of ``rank`` to the file descriptor ``target``."""
        os.set_blocking(source.fileno(), False)
        self._selector.register(source, selectors.EVENT_READ, _Stream(rank, source, target, hold_errors))

    def poll(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for output and pass it on; False when there was none."""
        events = self._selector.select(timeout)
        for key, _ in events:
            stream: _Stream = key.data
            data = stream.source.read(_READ_SIZE)
            if data:
                self._split(stream, data)
            elif data == b"":
                self._selector.unregister(stream.source)
                self._finish(stream)
        return bool(events)

    def close(self) -> None:
        """Pass on what is in the pipes now; a grandchild that holds one open is not waited for."""
        while self._selector.get_map() and self.poll(0.1):
            pass
        for key in list(self._selector.get_map().values()):
            self._finish(key.data)
        self._selector.close()

    def _split(self, stream: _Stream, data: bytes) -> None:
        *lines, stream.rest = (stream.rest + data).split(b"\n")
        if len(stream.rest) > _LONGEST_LINE:
            lines.append(stream.rest)
            stream.rest = b""
        for line in lines:
            self._emit(stream, line)

    def _finish(self, stream: _Stream) -> None:
        if stream.rest:
            self._emit(stream, stream.rest)
        stream.rest = b""
        stream.source.close()

    def _emit(self, stream: _Stream, line: bytes) -> None:
        if stream.target == _STDERR and self.tap(stream.rank, line.decode(errors="replace")):
            return
        if stream.hold_errors and line.startswith(ERROR_PREFIX.encode()):
            self.errors.setdefault(stream.rank, []).append(line.decode(errors="replace").rstrip())
            return
        # A rank's own log lines carry the prefix already.
        prefix = b"" if stream.rank == 0 or line.startswith(b"[rank ") else f"[rank {stream.rank}] ".encode()
        write_line(stream.target, prefix + line + b"\n")


_unread: set[int] = set()
"""Descriptors whose reader has not read for a while."""


def write_line(target: int, data: bytes) -> None:
    """Write to a descriptor whose reader may be gone or asleep: what it does not take within seconds is dropped.

    Training goes on, and signals are heard, although nobody reads: a pager at its first page, a stopped terminal.
    """
    while data:
        try:
            patience = 0.0 if target in _unread else _UNREAD_SECONDS
            if not select.select([], [target], [], patience)[1]:
                _unread.add(target)
                return
            _unread.discard(target)
            # A pipe that can be written to takes that much without blocking.
            data = data[os.write(target, data[: select.PIPE_BUF]) :]
        except (OSError, ValueError):
            return
