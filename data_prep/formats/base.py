"""What a format of input files is to the rest of ``prep``."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.options import ReadOptions

MAX_DOCUMENT_CHARACTERS = 4 << 20
"""A longer document is cut at a space into several: encoding needs about 30 bytes of memory per character."""

LINE_END = re.compile(rb"\n")

Texts = Callable[[BinaryIO, ReadOptions, Tally], Iterator[str]]
"""The documents of a stream, clean; what cannot be used is counted in the tally.

Raises DataError for a stream that has to be refused as a whole (no such column, a damaged table).
"""


@dataclass(frozen=True)
class Format:
    """One kind of input file. A new one is a module beside this one and an entry of ``table.FORMATS``."""

    name: str
    """What ``--format`` calls it."""
    summary: str
    """One line for help and messages."""
    endings: tuple[str, ...]
    """Endings of files (".csv") that are read as this, unless their first bytes say something else."""
    texts: Texts
    cuts: Callable[[ReadOptions], re.Pattern[bytes] | None] | None = None
    """Where a stream may be cut so that both sides are whole documents: after a match of the pattern, or nowhere if
    that is None. A format without this is turned into JSON lines first, and these are cut."""
    is_plain_text: bool = False
    """Documentation beside it (README.md) is text like any other; beside tables and records it is not."""
    needs: str = ""
    """A package that it needs, and the extra that brings it: "pyarrow:parquet"."""


class RowReport:
    """Counts rows of a file that is turned into JSON lines; its lines are numbered elsewhere, its rows here."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.row = 0
        """Number of the present row, from 1."""

    def reject(self, kind: str, detail: str = "", *, num_bytes: int = 0) -> None:
        """Count the present row as one that cannot be used."""
        where = f"row {self.row}: {detail}" if detail else f"row {self.row}"
        self._tally.lines += 1
        self._tally.text_bytes += num_bytes
        self._tally.reject(kind, line=0, offset=0, num_bytes=num_bytes, detail=where)
