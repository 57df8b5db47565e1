"""What a checkpoint holds, whatever the layout was: one safetensors file and one index of it for every rank.

``rank-R.safetensors`` has a flat float32 tensor ``STATE/NAME`` for every fragment and state; the fragments, and the
counters of the run, are in ``rank-R.json``, and those of all ranks once more in ``index.json``. A reader under another
layout finds by name what overlaps with what it needs, and reads those bytes only.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from megadeberta.checkpoint.durable import Digest, HashingFile
from megadeberta.checkpoint.folder import INDEX_NAME, rank_file_name, tensor_file_name
from megadeberta.checkpoint.fragments import Fragment, overlaps
from megadeberta.config.first_problem import first_problem
from megadeberta.config.section import Section
from megadeberta.errors import CheckpointError

WEIGHT = "weight"
"""The state of a parameter that every reader needs; what an optimizer keeps besides has the names that it gives."""
AVERAGE = "average"
"""The exponential average of the weights (``training.ema_decay``), of a parameter that has been updated."""
_Content = TypeVar("_Content")
_ITEM = np.dtype("<f4").itemsize
_BLOCK = 4 << 20
"""Elements read at a time: bounds the memory of loading."""


class RankContent(Section):
    """``rank-R.json``."""

    fragments: tuple[Fragment, ...]
    counters: dict[str, int | float] = Field(description="of the engine: the same on every rank")
    scaler: dict[str, int | float] = Field(description="state of the fp16 loss scale; empty in other precisions")


class Entry(NamedTuple):
    """A fragment's values of one state; ``read`` gives them as flat float32 when their turn comes."""

    state: str
    fragment: Fragment
    read: Callable[[], np.ndarray]


def write_tensors(path: Path, entries: Sequence[Entry]) -> Digest:
    """A new safetensors file, hashed and durable, one entry in memory at a time.

    Raises:
        OSError: the disk refused.
    """
    header: dict[str, Any] = {}
    offset = 0
    for state, fragment, _ in entries:
        end = offset + fragment.size * _ITEM
        header[f"{state}/{fragment.name}"] = {
            "dtype": "F32",
            "shape": [fragment.size],
            "data_offsets": [offset, end],
        }
        offset = end
    assert len(header) == len(entries)  # a rank holds at most one fragment of a parameter
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with HashingFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            values = entry.read()
            assert values.dtype == np.float32 and values.shape == (entry.fragment.size,)
            file.write(np.ascontiguousarray(values).data)
        return file.finish()


class CheckpointContent:
    """The fragments of all ranks of one verified checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        """Read the indexes of all ranks.

        Raises:
            CheckpointError: an index is missing, or is not one.
        """
        self.folder = folder
        self._where: dict[str, list[tuple[str, Fragment]]] = {}
        self._open: dict[str, Any] = {}
        self._keys: dict[str, frozenset[str]] = {}
        ranks = _read_ranks(folder)
        for number, content in enumerate(ranks):
            for fragment in content.fragments:
                self._where.setdefault(fragment.name, []).append((tensor_file_name(number), fragment))
        self._first = ranks[0]

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
        found = {fragment.updates for _, fragment in self._fragments(name)}
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
        for file, fragment in self._fragments(wanted.name):
            if fragment.shape != wanted.shape:
                raise CheckpointError(
                    f"{self.folder}: {wanted.name} has shape {list(fragment.shape)} there, {list(wanted.shape)} here; "
                    "resume with the model that wrote it"
                )
            for overlap in overlaps(fragment, wanted):
                source = self._tensor(file, f"{state}/{fragment.name}", fragment.size)
                target = as_strided(
                    out[overlap.target_offset :],
                    (overlap.rows, overlap.columns),
                    (overlap.target_stride * _ITEM, _ITEM),
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
            held = self._fragments(name)
            shape = held[0][1].shape
            # Before the memory for it is taken: what an index says about shapes is only as good as its fragments.
            if sum(fragment.size for _, fragment in held) != math.prod(shape):
                raise CheckpointError(f"{self.folder}: {name} {list(shape)} is not whole; {_ADVICE}")
            values = np.empty(math.prod(shape), dtype=np.float32)
            self.read(state, Fragment(name=name, shape=shape, start=0, stop=values.size), values)
            yield name, values.reshape(shape)

    def holds(self, state: str, name: str) -> bool:
        """Whether the parameter has this state here.

        Raises:
            CheckpointError: there is no such parameter, or its file cannot be read.
        """
        file, fragment = self._fragments(name)[0]
        self._tensor(file, f"{WEIGHT}/{fragment.name}", fragment.size)  # opens it
        if file not in self._keys:
            self._keys[file] = frozenset(self._open[file].keys())
        return f"{state}/{name}" in self._keys[file]

    def _fragments(self, name: str) -> list[tuple[str, Fragment]]:
        if name not in self._where:
            raise CheckpointError(f"{self.folder}: holds no parameter {name}; resume with the model that wrote it")
        return self._where[name]

    def _tensor(self, file: str, key: str, size: int) -> Any:
        path = self.folder / file
        try:
            if file not in self._open:
                self._open[file] = safe_open(path, framework="numpy").__enter__()
            tensor = self._open[file].get_slice(key)
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
        part[:] = as_strided(block, part.shape, (stride * _ITEM, _ITEM))


def _read_ranks(folder: Path) -> list[RankContent]:
    """The indexes of all ranks: of one file, or in older checkpoints of a file of each."""
    path = folder / INDEX_NAME
    if path.exists():
        found = _read_json(path, TypeAdapter(list[RankContent]))
        if not found:
            raise CheckpointError(f"{path}: is no index of tensors (of no rank); {_ADVICE}")
        return found
    one, ranks = TypeAdapter(RankContent), [_read_json(folder / rank_file_name(0), TypeAdapter(RankContent))]
    while (path := folder / rank_file_name(len(ranks))).exists():
        ranks.append(_read_json(path, one))
    return ranks


def _read_json(path: Path, kind: TypeAdapter[_Content]) -> _Content:
    try:
        return kind.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = error.strerror if isinstance(error, OSError) else first_problem(error)
        raise CheckpointError(f"{path}: is no index of tensors ({detail}); {_ADVICE}") from None


_ADVICE = "the checkpoint is damaged; use an older one"
