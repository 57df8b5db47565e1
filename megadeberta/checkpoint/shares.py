"""Where each rank's share of a checkpoint lies: one file per machine, whatever its ranks. Pure arithmetic.

A file is one of safetensors: the length of its header (8 bytes), the header (JSON), the data. Of header and data each
rank of the machine has a part of its own, in the order of the ranks:

    header of rank 0 | header of rank 1 | ... | data of rank 0 | data of rank 1 | ...

Every part is a whole number of pages: no two processes write to one page, so nothing depends on how a network file
system merges such writes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from megadeberta.checkpoint.folder import node_file_name

PAGE = 4096
"""Bytes; parts begin and end at multiples of it."""


class ShareSize(NamedTuple):
    """What a rank needs: its machine (``machine_id``), bytes of header and of data, both multiples of ``PAGE``."""

    machine: str
    header: int
    data: int


class Extent(NamedTuple):
    """Bytes ``[start, stop)`` of a file."""

    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """How many."""
        return self.stop - self.start


class Place(NamedTuple):
    """Where the share of a rank lies.

    ``header_bytes``: of all ranks of the file together, the 8 bytes of its length included, so where the data begins.
    """

    file: str
    header: Extent
    data: Extent
    header_bytes: int

    @property
    def is_first(self) -> bool:
        """Whether the file begins with it."""
        return self.header.start == 0

    @property
    def is_last(self) -> bool:
        """Whether its header ends the header of the file."""
        return self.header.stop == self.header_bytes


def plan_shares(sizes: Sequence[ShareSize]) -> list[Place]:
    """The place of every rank, in the order of the ranks; machines are numbered by their first ranks."""
    ranks_of: dict[str, list[int]] = {}
    for rank, size in enumerate(sizes):
        assert size.header % PAGE == 0 and size.data % PAGE == 0
        ranks_of.setdefault(size.machine, []).append(rank)
    places: dict[int, Place] = {}
    for number, ranks in enumerate(ranks_of.values()):
        header_bytes = sum(sizes[rank].header for rank in ranks)
        header, data = 0, header_bytes
        for rank in ranks:
            size = sizes[rank]
            places[rank] = Place(
                node_file_name(number),
                Extent(header, header + size.header),
                Extent(data, data + size.data),
                header_bytes,
            )
            header, data = header + size.header, data + size.data
    return [places[rank] for rank in range(len(sizes))]


def whole_pages(size: int) -> int:
    """``size`` bytes rounded up to a multiple of ``PAGE``."""
    return -(-size // PAGE) * PAGE
