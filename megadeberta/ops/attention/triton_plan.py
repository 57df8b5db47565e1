"""Tile sizes of the attention kernels, and how the table kernel divides its work into programs.

Plain arithmetic without torch and Triton, so that a design can be checked where there is no GPU.

Shapes: BM queries · BN keys · WD = BM + BN distances of a window · D head size, padded to a power of two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

GLUON_HEAD_SIZES = (32, 64)
"""Of the kernels in Gluon: tiles of larger heads do not fit their shared memory."""

_TILE, _SMALL_TILE = 64, 32
"""Queries and keys of a tile."""

PROGRAMS_WANTED = 8 * 132
"""Programs of the table kernel: four for each place of two blocks on each multiprocessor of an H200."""


@dataclass(frozen=True)
class KernelPlan:
    """The tiles of one kernel."""

    rows: int
    """BM. Equal to BN: the blocks in which position scores are rotated lie on diagonals of square tiles."""
    columns: int
    """BN."""
    warps: int
    stages: int
    """Depth of the software pipeline of the loop over tiles."""

    @property
    def window(self) -> int:
        """WD: the distances of a tile, one more than needed to be a power of two."""
        return self.rows + self.columns

    @staticmethod
    def padded(head_size: int) -> int:
        """D."""
        return max(16, 1 << (head_size - 1).bit_length())

    def options(self, head_size: int) -> dict[str, Any]:
        """Keyword arguments of a kernel launch."""
        tile = {"BM": self.rows, "BN": self.columns, "D": self.padded(head_size)}
        return tile | {"num_warps": self.warps, "num_stages": self.stages}

    def windows(self, num_rows: int, num_keys: int) -> int:
        """Windows of distances of the table kernel.

        Window w is diagonal w of tiles: the tiles whose query tile minus key tile is w. It holds the distances
        ``w BM - BN + 1 .. w BM + BM``, so neighbours overlap and each tile has one window. They are numbered by
        length, longest first: 0, 1, -1, 2, -2, ...
        """
        return 2 * max(-(-num_rows // self.rows), -(-num_keys // self.columns)) - 1

    def shares(self, batch: int, heads: int, num_windows: int) -> tuple[int, int]:
        """Parts of the batch that the table kernel sums apart, and the samples of each.

        A program for every sample would need scratch of that many tables; one for all would leave multiprocessors idle.
        """
        wanted = max(1, min(batch, PROGRAMS_WANTED // (heads * num_windows)))
        samples_each = -(-batch // wanted)
        return -(-batch // samples_each), samples_each


@dataclass(frozen=True)
class AttentionPlan:
    """The tiles of the four kernels of one call, forward and backward."""

    forward: KernelPlan
    query: KernelPlan
    key: KernelPlan
    table: KernelPlan


@dataclass(frozen=True)
class LaunchShape:
    """What a choice of tiles is made for."""

    kernels: str
    """Name of the backend: "triton" or "gluon"."""
    head_size: int
    element_bytes: int
    """Of the queries, keys and values."""
    queries: int
    """Query rows of a sequence."""
    keys: int
    gathered: bool
    """The query rows have positions of their own in every sequence, as in the mask decoder."""
    dropout: bool
    masked: bool


_CHOSEN: dict[LaunchShape, AttentionPlan] = {}
_asked: list[LaunchShape] | None = None


def default_plan(shape: LaunchShape) -> AttentionPlan:
    """The tiles without a trial; the kernels in Gluon have these only."""
    plan = _all_kernels(KernelPlan(_TILE, _TILE, _warps(shape), stages=1))
    return replace(plan, table=replace(plan.table, warps=8)) if shape.kernels == "gluon" else plan


def small_plan(shape: LaunchShape) -> AttentionPlan | None:
    """Tiles for a GPU with too little shared memory for the default ones; None where there are none."""
    return _all_kernels(KernelPlan(_SMALL_TILE, _SMALL_TILE, 4, stages=1)) if shape.kernels == "triton" else None


def variants(shape: LaunchShape, plan: AttentionPlan) -> list[AttentionPlan]:
    """What a trial compares ``plan`` with: plans that differ from it in one kernel."""
    found = []
    for kernel in fields(AttentionPlan):
        others = [other for other in _worth_trying(shape, kernel.name) if other != getattr(plan, kernel.name)]
        found += [replace(plan, **{kernel.name: other}) for other in others]
    return found


def plan_for(shape: LaunchShape) -> AttentionPlan:
    """The tiles chosen for the shape, else the default."""
    if _asked is not None:
        _asked.append(shape)
    return _CHOSEN.get(_kind(shape)) or default_plan(shape)


def choose_plan(shape: LaunchShape, plan: AttentionPlan) -> None:
    """Take ``plan`` in this process from now on: for the shape, without dropout or mask too, and with any number of
    target rows, which differs between micro batches."""
    _CHOSEN[_kind(shape)] = plan


@contextmanager
def plan_chosen(shape: LaunchShape, plan: AttentionPlan) -> Iterator[None]:
    """Take ``plan`` for the shape meanwhile, and then what was taken before."""
    before = _CHOSEN.get(_kind(shape))
    choose_plan(shape, plan)
    try:
        yield
    finally:
        if before is None:
            del _CHOSEN[_kind(shape)]
        else:
            choose_plan(shape, before)


@contextmanager
def asked_shapes() -> Iterator[list[LaunchShape]]:
    """The shapes that ``plan_for`` is asked for meanwhile, in any thread."""
    global _asked
    _asked = []
    try:
        yield _asked
    finally:
        _asked = None


def _worth_trying(shape: LaunchShape, kernel: str) -> list[KernelPlan]:
    """For one kernel, from what they compile to: each choice costs the time of compiling it."""
    if shape.kernels != "triton":
        return []
    usual, more = _warps(shape), 12 - _warps(shape)
    plans = [KernelPlan(_TILE, _TILE, more, 1), KernelPlan(_SMALL_TILE, _SMALL_TILE, 4, 1)]
    if kernel in ("forward", "query") and not shape.gathered:  # the others have no loop that two stages change
        plans += [KernelPlan(_TILE, _TILE, usual, 2), KernelPlan(_SMALL_TILE, _SMALL_TILE, 4, 2)]
    return plans


def _warps(shape: LaunchShape) -> int:
    return 4 if shape.head_size <= 64 else 8


def _all_kernels(plan: KernelPlan) -> AttentionPlan:
    return AttentionPlan(plan, plan, plan, plan)


def _kind(shape: LaunchShape) -> LaunchShape:
    return replace(shape, dropout=False, masked=False, queries=0 if shape.gathered else shape.queries)
