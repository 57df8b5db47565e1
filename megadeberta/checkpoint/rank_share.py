"""What one rank writes into the file of its machine: a record of what it holds, and a tensor for each of it.

Keys begin with the rank: ``rank-R/STATE/NAME`` is a flat float32 tensor for every fragment and state, ``rank-R/record``
the record, JSON as bytes, filled up with spaces.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from megadeberta.checkpoint.durable import Digest, HashingFile
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.shares import Place, whole_pages
from megadeberta.config.section import Section

ITEM = np.dtype("<f4").itemsize
_LENGTH_BYTES = 8
"""Of the number that a safetensors file begins with."""
_WIDEST = 10**15
"""No offset has more digits: where the data of a rank begins is known only when all have said how much they need."""


class RankContent(Section):
    """The record of a rank."""

    fragments: tuple[Fragment, ...]
    counters: dict[str, int | float] = Field(description="of the engine: the same on every rank")
    scaler: dict[str, int | float] = Field(description="state of the fp16 loss scale; empty in other precisions")


class Entry(NamedTuple):
    """A fragment's values of one state; ``read`` gives them as flat float32 when their turn comes."""

    state: str
    fragment: Fragment
    read: Callable[[], np.ndarray]


class WrittenShare(NamedTuple):
    """Digests of the parts of a share, and of the record that its data begins with."""

    header: Digest
    data: Digest
    record: Digest


def tensor_key(rank: int, state: str, name: str) -> str:
    """The key of a tensor in the file of a machine."""
    return f"rank-{rank}/{state}/{name}"


class RankShare:
    """One rank's share of a checkpoint, before it is written."""

    def __init__(self, rank: int, content: RankContent, entries: Sequence[Entry]) -> None:
        """
        Args:
            content: JSON values alone, no NaN.
            entries: at most one of a state and a parameter.
        """
        self._rank = rank
        self._entries = entries
        tensor_bytes = sum(entry.fragment.size for entry in entries) * ITEM
        record = json.dumps(content.model_dump(mode="json"), allow_nan=False).encode()
        self.data_bytes = whole_pages(len(record) + tensor_bytes)
        self._record = record.ljust(self.data_bytes - tensor_bytes)
        self.header_bytes = whole_pages(_LENGTH_BYTES + len("{}") + len(self._tensors_from(_WIDEST)))

    def _tensors_from(self, offset: int) -> str:
        """The inside of a JSON object, of which every byte is of ASCII.

        Args:
            offset: where this rank's data begins, behind the header.
        """
        tensors: dict[str, Any] = {}
        sizes = [("U8", len(self._record), 1), *(("F32", entry.fragment.size, ITEM) for entry in self._entries)]
        keys = [f"rank-{self._rank}/record"]
        keys += [tensor_key(self._rank, entry.state, entry.fragment.name) for entry in self._entries]
        for key, (kind, length, item) in zip(keys, sizes, strict=True):
            tensors[key] = {"dtype": kind, "shape": [length], "data_offsets": [offset, offset + length * item]}
            offset += length * item
        assert len(tensors) == len(keys)  # a rank holds at most one fragment of a parameter
        return json.dumps(tensors, separators=(",", ":"))[1:-1]

    def _header(self, place: Place) -> bytes:
        length = (place.header_bytes - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little") if place.is_first else b""
        text = ("{" if place.is_first else ",") + self._tensors_from(place.data.start - place.header_bytes)
        room = place.header.bytes - len(length)
        return length + ((text + "}") if place.is_last else text).encode().ljust(room)

    def write(self, folder: Path, place: Place) -> WrittenShare:
        """Into the file that is there, hashed and durable, one entry in memory at a time.

        Raises:
            OSError: the disk refused, or the file is a link.
        """
        assert place.header.bytes == self.header_bytes and place.data.bytes == self.data_bytes
        with HashingFile(folder / place.file, is_new=False) as file:
            file.go_to(place.header.start)
            file.write(self._header(place))
            header = file.take_digest()
            file.go_to(place.data.start)
            file.write(self._record)
            for entry in self._entries:
                values = entry.read()
                assert values.dtype == np.float32 and values.shape == (entry.fragment.size,)
                file.write(np.ascontiguousarray(values).data)
            return WrittenShare(
                header, file.finish(), Digest(len(self._record), hashlib.sha256(self._record).hexdigest())
            )
