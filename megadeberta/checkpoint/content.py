"""Reading a checkpoint, whatever the layout was: an index of all ranks, and a safetensors file of every machine.

What a rank wrote, and how its tensors are called, is in ``rank_share.py``; ``index.json`` has the records of all.
A reader under another layout finds by name what overlaps with what it needs, and reads those bytes only.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from megadeberta.checkpoint.folder import INDEX_NAME, NODE_FILE
from megadeberta.checkpoint.fragments import Fragment, overlaps
from megadeberta.checkpoint.rank_share import ITEM, RankContent, tensor_key
from megadeberta.config.first_problem import first_problem
from megadeberta.config.section import Section
from megadeberta.errors import CheckpointError

WEIGHT = "weight"
"""The state of a parameter that every reader needs; what an optimizer keeps besides has the names that it gives."""
AVERAGE = "average"
"""The exponential average of the weights (``training.ema_decay``), of a parameter that has been updated."""
_BLOCK = 4 << 20
"""Elements read at a time: bounds the memory of loading."""


class RankEntry(Section):
    """What ``index.json`` has for a rank."""

    file: str = Field(pattern=NODE_FILE)
    content: RankContent


class _Held(NamedTuple):
    """A fragment, and the rank and file that have its tensors."""

    file: str
    rank: int
    fragment: Fragment


class CheckpointContent:
    """The fragments of all ranks of one verified checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        """Read the index.

        Raises:
            CheckpointError: it is missing, or is not one.
        """
        self.folder = folder
        self._where: dict[str, list[_Held]] = {}
        self._open: dict[str, Any] = {}
        self._keys: dict[str, frozenset[str]] = {}
        ranks = _read_index(folder)
        for rank, entry in enumerate(ranks):
            for fragment in entry.content.fragments:
                self._where.setdefault(fragment.name, []).append(_Held(entry.file, rank, fragment))
        self._first = ranks[0].content

    @property
    def names(self) -> list[str]:
        """Global names of the parameters, in the order of the ranks that wrote them."""
        return list(self._where)

    @property
    def counters(self) -> dict[str, int | float]:
        """Of the engine that wrote it."""
        return self._first.counters

    @property
    def scaler(self) -> dict[str, int | float]:
        """State of the fp16 loss scale; empty when it was written in another precision."""
        return self._first.scaler

    def updates(self, name: str) -> float | None:
        """How often the optimizer has updated the parameter; None when it has no state for it.

        Raises:
            CheckpointError: there is no such parameter, or its fragments do not agree.
        """
        found = {held.fragment.updates for held in self._held(name)}
        if len(found) > 1:
            raise CheckpointError(f"{self.folder}: {name} has fragments of different updates; {_ADVICE}")
        return found.pop()

    def read(self, state: str, wanted: Fragment, out: np.ndarray) -> None:
        """Fill ``out`` with what ``wanted`` says, from whatever fragments hold it.

        Args:
            out: flat float32, ``wanted.size`` elements.

        Raises:
            CheckpointError: the parameter is not there, has another shape, or elements are missing.
        """
        filled = 0
        for held in self._held(wanted.name):
            fragment = held.fragment
            if fragment.shape != wanted.shape:
                raise CheckpointError(
                    f"{self.folder}: {wanted.name} has shape {list(fragment.shape)} there, {list(wanted.shape)} here; "
                    "resume with the model that wrote it"
                )
            for overlap in overlaps(fragment, wanted):
                source = self._tensor(held, state)
                target = as_strided(
                    out[overlap.target_offset :],
                    (overlap.rows, overlap.columns),
                    (overlap.target_stride * ITEM, ITEM),
                )
                _copy(source, overlap.source_offset, overlap.source_stride, target)
                filled += overlap.size
        if filled != wanted.size:
            raise CheckpointError(
                f"{self.folder}: holds {filled} of {wanted.size} elements of {state}/{wanted.name}; {_ADVICE}"
            )

    def whole(self, state: str = WEIGHT) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter's state under its global name and in its full shape, one after the other.

        Raises:
            CheckpointError: elements are missing.
        """
        for name in self.names:
            held = self._held(name)
            shape = held[0].fragment.shape
            # Before the memory for it is taken: what an index says about shapes is only as good as its fragments.
            if sum(each.fragment.size for each in held) != math.prod(shape):
                raise CheckpointError(f"{self.folder}: {name} {list(shape)} is not whole; {_ADVICE}")
            values = np.empty(math.prod(shape), dtype=np.float32)
            self.read(state, Fragment(name=name, shape=shape, start=0, stop=values.size), values)
            yield name, values.reshape(shape)

    def holds(self, state: str, name: str) -> bool:
        """Whether the parameter has this state here.

        Raises:
            CheckpointError: there is no such parameter, or its file cannot be read.
        """
        held = self._held(name)[0]
        self._tensor(held, WEIGHT)  # opens it
        if held.file not in self._keys:
            self._keys[held.file] = frozenset(self._open[held.file].keys())
        return tensor_key(held.rank, state, name) in self._keys[held.file]

    def _held(self, name: str) -> list[_Held]:
        if name not in self._where:
            raise CheckpointError(f"{self.folder}: holds no parameter {name}; resume with the model that wrote it")
        return self._where[name]

    def _tensor(self, held: _Held, state: str) -> Any:
        path, size = self.folder / held.file, held.fragment.size
        key = tensor_key(held.rank, state, held.fragment.name)
        try:
            if held.file not in self._open:
                self._open[held.file] = safe_open(path, framework="numpy").__enter__()
            tensor = self._open[held.file].get_slice(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as tensors ({error}); {_ADVICE}") from None
        if tensor.get_dtype() != "F32" or tensor.get_shape() != [size]:
            raise CheckpointError(
                f"{path}: {key} is {tensor.get_dtype()} {tensor.get_shape()}, its index says F32 [{size}]; {_ADVICE}"
            )
        return tensor


def _copy(source: Any, offset: int, stride: int, target: np.ndarray) -> None:
    """Copy rows that lie ``stride`` elements apart from a flat tensor on disk; at most about ``_BLOCK`` at a time."""
    rows, columns = target.shape
    if (rows == 1 or stride == columns) and target.flags.c_contiguous:
        flat = target.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            part[:] = source[offset + start : offset + start + part.size]
        return
    together = max(1, _BLOCK // stride)
    for row in range(0, rows, together):
        part = target[row : row + together]
        start = offset + row * stride
        block = source[start : start + (len(part) - 1) * stride + columns]
        part[:] = as_strided(block, part.shape, (stride * ITEM, ITEM))


def _read_index(folder: Path) -> list[RankEntry]:
    """Of all ranks."""
    path = folder / INDEX_NAME
    try:
        found = TypeAdapter(list[RankEntry]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = error.strerror if isinstance(error, OSError) else first_problem(error)
        raise CheckpointError(f"{path}: is no index of tensors ({detail}); {_ADVICE}") from None
    if not found:
        raise CheckpointError(f"{path}: is no index of tensors (of no rank); {_ADVICE}")
    return found


_ADVICE = "the checkpoint is damaged; use an older one"
