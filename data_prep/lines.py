"""Lines of a stream of bytes, and which of them can be used."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from megadeberta.data_prep.bad_lines import Tally

_CHUNK = 1 << 20
BLANKS = " \t\r\v\f"
"""What a blank line consists of."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLine(Exception):
    """A line that cannot be used."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


class CutOff(Exception):
    """Raised by a stream that is damaged from here on: the line it ends in is of unknown content."""


class Line(NamedTuple):
    """One line of a stream."""

    number: int
    offset: int
    raw: bytes | None
    """Without its newline; None for a line longer than allowed."""
    num_bytes: int
    """Without its newline."""


class Readable(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """Some bytes; ``b""`` at the end."""


def read_lines(file: Readable, *, max_bytes: int, number: int = 0, offset: int = 0) -> Iterator[Line]:
    """All lines of a stream, with offsets from its beginning; memory stays bounded however long a line is.

    A stream that raises CutOff ends with its last whole line.

    Args:
        number, offset: lines and bytes before the stream.
    """
    pieces: list[bytes] = []  # of the line that no chunk has ended yet
    held = 0  # bytes of that line; its pieces are let go once they are too many

    def line() -> Line:
        return Line(number, offset, b"".join(pieces) if held <= max_bytes else None, held)

    while True:
        try:
            chunk = file.read(_CHUNK)
        except CutOff:
            return
        if not chunk:
            break
        first, *more = chunk.split(b"\n")
        pieces.append(first)
        held += len(first)
        for after in more:
            number += 1
            yield line()
            offset += held + 1
            pieces, held = [after], len(after)
        if held > max_bytes:
            pieces = []
    if held:
        number += 1
        yield line()


def usable(line: Line, *, tally: Tally) -> bytes | None:
    """The line's bytes without a byte order mark; None (and counted) if it is too long."""
    tally.lines += 1
    tally.text_bytes += line.num_bytes + 1
    if line.raw is None:
        tally.reject("line_too_long", line=line.number, offset=line.offset, num_bytes=line.num_bytes)
        return None
    if line.raw.startswith(BYTE_ORDER_MARK):
        tally.count("byte_order_mark", line=line.number, offset=line.offset)
        return line.raw[len(BYTE_ORDER_MARK) :]
    return line.raw


def decode(raw: bytes) -> str:
    """UTF-8 text of a line.

    Raises:
        BadLine: NUL, half a surrogate pair, or other invalid bytes.
    """
    if b"\0" in raw:
        raise BadLine("nul_byte")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        try:
            raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise BadLine("invalid_utf8", f"byte {raw[error.start]:#04x} at {error.start}") from None
        raise BadLine("lone_surrogate") from None
