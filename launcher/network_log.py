"""What the C++ code of torch, gloo and NCCL writes about connections: into a file, not between the lines of the run.

A lost peer makes every other rank write pages of it (places in source files, stack frames). The launcher's own line
says who was lost; the file is for whoever looks for the reason in the network.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from megadeberta.storage import refuse_link

NETWORK_LOG = "network.log"
"""In the output folder."""

_MOST_BYTES = 16 << 20
"""Of one start; NCCL_DEBUG=INFO writes hundreds of lines per rank."""
_PLACE = r"[\w./+-]+\.(?:cc|cpp|cu|h|hpp):\d+"
_BEGIN = re.compile(
    rf"(?:\[rank\d+\]: ?)?\[[EWIF]\d{{4}} \d\d:\d\d:\d\d\.\d+ {_PLACE}\]"  # torch: c10/util/Logging.cpp
    rf"|\[{_PLACE}\] "  # gloo
    r"|\S+:\d+:\d+ \[\d+\] .*NCCL (?:INFO|WARN|ERROR|TRACE)"
    r"|terminate called after throwing an instance of '(?:c10::Dist|gloo::)"
)
_MORE = re.compile(r"\s*(?:frame #\d+: |Exception raised from |what\(\): |$)")
_HOST = re.compile(r"([A-Za-z0-9_.-]+): ")


class NetworkLog:
    """Of one start of a run."""

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        """
        Args:
            path: of the file, which is made when there is something to write; None takes no line.
            say: shows the user a line: once, where the file is.
        """
        self._path, self._say = path, say
        self._descriptor = -1
        self._written = 0
        self._under_way: set[int | str] = set()

    def take(self, rank: int | None, line: str) -> bool:
        """Whether the line belongs here, and was written; a file that cannot be written takes nothing more.

        Args:
            rank: whose standard error it was; None where the line begins with its host, as pdsh marks it.
        """
        if self._path is None:
            return False
        source: int | str = rank if rank is not None else ""
        text = line
        if rank is None and (host := _HOST.match(line)):
            source, text = host[1], line[host.end() :]
        if not (_BEGIN.match(text) or (source in self._under_way and _MORE.match(text))):
            self._under_way.discard(source)
            return False
        self._under_way.add(source)
        return self._write(f"rank {source}" if rank is not None else str(source), text)

    def close(self) -> None:
        """No line comes after this."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = None, -1

    def _write(self, source: str, text: str) -> bool:
        assert self._path is not None
        try:
            if self._descriptor < 0:
                refuse_link(self._path)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o666)
                self._say(f"what the network libraries write is in {self._path}")
            data = f"{datetime.now().isoformat(timespec='milliseconds')} {source}: {text}\n".encode()
            if self._written + len(data) <= _MOST_BYTES:
                self._written += os.write(self._descriptor, data)
        except OSError:
            with suppress(OSError):
                self.close()
            return False
        return True
