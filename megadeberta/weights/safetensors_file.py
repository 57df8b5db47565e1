"""What a safetensors file says without torch: the names of its tensors, and whether its numbers are finite."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from megadeberta.errors import CheckpointError
from megadeberta.storage import pointer_note

SAFETENSORS = "model.safetensors"
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_BF16_EXPONENT = 0x7F80
"""All of these bits are set in NaN and infinity, and in no other value; numpy has no such type."""
_BLOCK = 4 << 20
"""Elements looked at together."""


def check_finite_at(place: Path) -> None:
    """:func:`check_finite_file` of a folder's ``model.safetensors``, or of such a file; other files are left to torch.

    Raises:
        CheckpointError: see there.
    """
    path = place if place.is_file() else place / SAFETENSORS
    if path.suffix == ".safetensors" and path.is_file():
        check_finite_file(path)


def tensor_names(path: Path) -> frozenset[str] | None:
    """The names in a safetensors file, or in the index of several; None where they cannot be read without torch."""
    try:
        if path.name.endswith(".index.json"):
            return frozenset(json.loads(path.read_bytes())["weight_map"])
        if path.suffix != ".safetensors":
            return None
        with safe_open(path, framework="numpy") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None  # who reads the tensors says what is wrong


def check_finite_file(path: Path) -> None:
    """Refuse NaN and infinity in a safetensors file of any size; the host holds 4 Mi elements at a time.

    Integers have neither, and of types of 8 bits nothing is said.

    Raises:
        CheckpointError: the first tensor that has one, and how many there are; or the file is damaged.
    """
    if note := pointer_note(path):
        raise CheckpointError(note)
    try:
        with safe_open(path, framework="numpy") as file:  # checks names, types, shapes and places of all tensors
            count = len(file.keys())
        bad = list(_not_finite(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the file is damaged, get it again") from None
    if bad:
        raise CheckpointError(not_finite(path, bad, count))


def not_finite(source: Path | str, bad: list[str], count: int) -> str:
    """What to tell of ``count`` tensors of which those named ``bad`` hold NaN or infinity."""
    return (
        f"{source}: {len(bad)} of {count} tensors hold NaN or infinity, first {bad[0]}; these weights are of no use, "
        "take an older checkpoint, or fetch the file again"
    )


def _not_finite(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, entry in header.items():
        if name == "__metadata__" or not math.prod(entry["shape"]):
            continue
        start, end = entry["data_offsets"]
        if not _is_finite(path, entry["dtype"], 8 + size + start, end - start):
            yield name


def _is_finite(path: Path, dtype: str, start: int, num_bytes: int) -> bool:
    """Whether the bytes of one tensor hold finite numbers only."""
    is_bf16 = dtype == "BF16"
    if not is_bf16 and dtype not in _FLOATS:
        return True
    item = np.dtype("<u2" if is_bf16 else _FLOATS[dtype])
    values = np.memmap(path, dtype=item, mode="r", offset=start, shape=(num_bytes // item.itemsize,))
    blocks = (values[first : first + _BLOCK] for first in range(0, values.size, _BLOCK))
    if is_bf16:
        return not any(((block & _BF16_EXPONENT) == _BF16_EXPONENT).any() for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)
