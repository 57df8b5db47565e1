"""Which part of a parameter is where, and where two such parts meet: pure index arithmetic.

A parameter is cut twice: tensor parallelism takes a slice along one dimension, and of that slice, flattened row by row,
ZeRO takes a range. In the plane of the full parameter (rows: the dimensions before the sliced one; columns: that one
and those after it) such a range is at most three rectangles: the end of a row, whole rows, the start of a row. The
overlap of two rectangles is a rectangle, so any cut can be read from any other without putting a parameter together.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from megadeberta.config.section import Section


class TensorSlice(NamedTuple):
    """Indices ``[start, stop)`` along ``dim`` of the full parameter."""

    dim: int
    start: int
    stop: int


class Fragment(Section):
    """Elements ``[start, stop)`` of a parameter's slice, flattened row by row; ``slice`` None: of the whole parameter.

    ``updates``: how often the optimizer has updated the parameter; None where it has no state for it yet.
    """

    name: str
    shape: tuple[int, ...] = Field(description="of the full parameter")
    slice: TensorSlice | None = None
    start: int = Field(ge=0)
    stop: int
    updates: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _lies_inside(self) -> Self:
        width = 0
        if self.slice is not None:
            dim, first, last = self.slice
            if not (0 <= dim < len(self.shape) and 0 <= first < last <= self.shape[dim]):
                raise ValueError(f"slice {tuple(self.slice)} is not inside shape {self.shape}")
            width = last - first
        local = math.prod(width if self.slice and d == self.slice.dim else n for d, n in enumerate(self.shape))
        if not self.start < self.stop <= local:
            raise ValueError(f"range [{self.start}, {self.stop}) is not inside the {local} elements of the slice")
        return self

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


class Rectangle(NamedTuple):
    """Rows ``[top, bottom)`` x columns ``[left, right)`` of a parameter's plane, and where a fragment holds them.

    The element (top, left) is number ``offset`` of the fragment; one row further is ``stride`` elements further.
    """

    top: int
    bottom: int
    left: int
    right: int
    offset: int
    stride: int


class Overlap(NamedTuple):
    """``rows x columns`` elements that two fragments share; offset and stride in elements of each of them."""

    rows: int
    columns: int
    source_offset: int
    source_stride: int
    target_offset: int
    target_stride: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows * self.columns


def overlaps(source: Fragment, target: Fragment) -> Iterator[Overlap]:
    """What ``target`` can take from ``source``: disjoint overlaps, at most nine.

    Raises:
        ValueError: they are not of one parameter, or sliced along different dimensions.
    """
    dims = {fragment.slice.dim for fragment in (source, target) if fragment.slice is not None}
    if source.name != target.name or source.shape != target.shape or len(dims) > 1:
        raise ValueError(f"{_describe(source)} and {_describe(target)} have no common plane")
    dim = dims.pop() if dims else 0
    theirs = list(_rectangles(source, dim))
    for mine in _rectangles(target, dim):
        for other in theirs:
            top, bottom = max(mine.top, other.top), min(mine.bottom, other.bottom)
            left, right = max(mine.left, other.left), min(mine.right, other.right)
            if top < bottom and left < right:
                yield Overlap(
                    bottom - top,
                    right - left,
                    other.offset + (top - other.top) * other.stride + left - other.left,
                    other.stride,
                    mine.offset + (top - mine.top) * mine.stride + left - mine.left,
                    mine.stride,
                )


def _rectangles(fragment: Fragment, dim: int) -> Iterator[Rectangle]:
    inner = math.prod(fragment.shape[dim + 1 :])
    left, right = 0, math.prod(fragment.shape[dim:])
    if fragment.slice is not None:
        left, right = fragment.slice.start * inner, fragment.slice.stop * inner
    width = right - left
    first, skipped = divmod(fragment.start, width)  # row, and columns of it that come before the range
    last, rest = divmod(fragment.stop, width)  # row, and columns of it that are still in the range
    if first == last:
        yield Rectangle(first, first + 1, left + skipped, left + rest, 0, width)
        return
    if skipped:
        yield Rectangle(first, first + 1, left + skipped, right, 0, width)
        first += 1
    if first < last:
        yield Rectangle(first, last, left, right, first * width - fragment.start, width)
    if rest:
        yield Rectangle(last, last + 1, left, left + rest, last * width - fragment.start, width)


def _describe(fragment: Fragment) -> str:
    cut = f"[{fragment.slice.start}:{fragment.slice.stop}] along {fragment.slice.dim}" if fragment.slice else "whole"
    return f"{fragment.name} {list(fragment.shape)} ({cut})"
