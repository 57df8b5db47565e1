"""A server of a folder's files on loopback that answers requests for ranges, each after a delay: an object store's
latency without one.

    python benchmarks/range_server.py FOLDER --delay 0.02
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

COUNTS_PATH = "/.counts"
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d+)", re.IGNORECASE)


@dataclass
class Counts:
    """What was asked of a server until now."""

    requests: int = 0
    waiting: int = 0
    most_waiting: int = 0
    """At the same time."""


class FolderProtocol(asyncio.Protocol):
    """One connection, kept open: GET and HEAD, whole files or one range."""

    def __init__(self, folder: Path, delay: float, counts: Counts) -> None:
        self._folder, self._delay, self._counts = folder, delay, counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            if head.startswith(f"GET {COUNTS_PATH} ".encode()):
                self._tell_counts()
                continue
            self._counts.requests += 1
            self._counts.waiting += 1
            self._counts.most_waiting = max(self._counts.most_waiting, self._counts.waiting)
            asyncio.get_running_loop().call_later(self._delay, self._answer, head)

    def _tell_counts(self) -> None:
        content = json.dumps(asdict(self._counts))
        self._transport.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())

    def _answer(self, head: bytes) -> None:
        self._counts.waiting -= 1
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        path = self._folder / target.lstrip("/")
        if not path.is_file():
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size, status, extra = path.stat().st_size, "200 OK", ""
        start, stop = 0, size
        if asked := _RANGE.search(head):
            start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start) if method == "GET" else b""
        lines = f"HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\n{extra}Content-Length: {stop - start}\r\n\r\n"
        self._transport.write(lines.encode() + content)


async def serve(folder: Path, delay: float) -> None:
    """Print the port, and serve until the process ends."""
    loop, counts = asyncio.get_running_loop(), Counts()
    server = await loop.create_server(lambda: FolderProtocol(folder, delay, counts), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def counts_of(address: str) -> Counts:
    """What was asked of the server at ``address``, without this question."""
    with urllib.request.urlopen(address + COUNTS_PATH) as answer:
        return Counts(**json.load(answer))


@contextmanager
def serving(folder: Path, *, delay: float) -> Iterator[str]:
    """The address of ``folder`` behind a server in a process of its own; ``delay`` in seconds."""
    command = [sys.executable, __file__, str(folder), "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.folder, arguments.delay))


if __name__ == "__main__":
    main()
