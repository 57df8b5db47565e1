"""Made-up layouts: a parameter cut over tensor-parallel ranks, and each slice over data-parallel ranks as ZeRO does."""

import itertools
import math

import numpy as np

from megadeberta.checkpoint.fragments import Fragment, TensorSlice


def cut(
    name: str,
    shape: tuple[int, ...],
    *,
    dim: int | None,
    bounds: tuple[int, ...] = (),
    data_parallel: int,
    shift: int = 0,
) -> list[list[Fragment]]:
    """What each (tensor, data) rank holds of a parameter: no fragment, or one.

    Args:
        dim: sliced dimension; None for a parameter that the tensor ranks replicate (the first of them owns it).
        bounds: inner borders of the slices, which may be uneven.
        shift: elements of other parameters before it in ZeRO's flat tensor.
    """
    edges = [] if dim is None else [0, *bounds, shape[dim]]
    slices = [None] if dim is None else [TensorSlice(dim, a, b) for a, b in itertools.pairwise(edges)]
    held = []
    for piece in slices:
        width = None if piece is None else piece.stop - piece.start
        count = math.prod(width if piece and d == piece.dim else n for d, n in enumerate(shape))
        partition = -(-(count + shift) // data_parallel)
        for rank in range(data_parallel):
            start, stop = max(0, rank * partition - shift), min(count, (rank + 1) * partition - shift)
            fits = start < stop
            held.append([Fragment(name=name, shape=shape, slice=piece, start=start, stop=stop)] if fits else [])
    return held


def values_of(fragment: Fragment, full: np.ndarray) -> np.ndarray:
    """The fragment's elements by plain slicing."""
    local = full
    if fragment.slice is not None:
        local = np.take(full, range(fragment.slice.start, fragment.slice.stop), axis=fragment.slice.dim)
    return np.ascontiguousarray(local.reshape(-1)[fragment.start : fragment.stop], dtype=np.float32)
