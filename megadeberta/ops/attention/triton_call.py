"""The arguments of one call of attention, in the order and the forms in which its kernels take them.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) table.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from megadeberta.ops.attention.triton_plan import GLUON_HEAD_SIZES, AttentionPlan, LaunchShape, plan_for
from megadeberta.ops.counter_dropout import ROUNDS


@dataclass(frozen=True)
class KernelCall:
    """What the custom operators are given; an absent tensor is replaced by one that is never read."""

    query: Tensor
    key: Tensor
    value: Tensor
    position_key: Tensor | None
    position_query: Tensor | None
    rows: Tensor | None
    begin: Tensor | None
    end: Tensor | None
    real: Tensor | None
    slots: Tensor | None
    seed: Tensor | None
    samples: Tensor | None
    scale: float
    threshold: int
    first_head: int
    kernels: str

    @property
    def num_rows(self) -> int:
        """Rows that tiles go over: positions, where the queries have positions of their own."""
        return self.query.size(2) if self.slots is None else self.key.size(2)

    @cached_property
    def path(self) -> str:
        """Name of the kernels that do it: those in Gluon leave to the portable ones what they do not take."""
        tables = [table for table in (self.position_key, self.position_query) if table is not None]
        left = self.kernels == "gluon" and not gluon_takes(self.query, self.key, self.value, tables)
        return "triton" if left else self.kernels

    @property
    def plan(self) -> AttentionPlan:
        shape = LaunchShape(
            kernels=self.path,
            head_size=self.query.size(3),
            element_bytes=self.query.element_size(),
            queries=self.query.size(2),
            keys=self.key.size(2),
            gathered=self.slots is not None,
            dropout=self.seed is not None,
            masked=self.begin is not None,
        )
        return plan_for(shape)

    def new_dense(self, like: Tensor) -> Tensor:
        """``[B, ., N, H]``."""
        batch, heads, count, head_size = like.shape
        return like.new_empty(batch, count, heads, head_size)

    def new_rows(self, query: Tensor) -> Tensor:
        """``[B, Q, N, H]`` for what the kernels write of each query row; zeros where rows may have no tile."""
        rows = self.new_dense(query)
        return rows if self.slots is None else rows.zero_()

    def tensors(self) -> tuple[Tensor, ...]:
        tables = (self.query if t is None else t for t in (self.position_key, self.position_query))
        return self.query, self.key, self.value, *tables

    def lookups(self) -> tuple[Tensor, ...]:
        given = (self.rows, self.begin, self.end, self.real, self.slots, self.seed, self.samples)
        return tuple(self.query if t is None else t for t in given)

    def strides(self) -> tuple[tuple[int, ...], ...]:
        tables = (self.position_key, self.position_query)
        content = (t.stride()[:3] for t in (self.query, self.key, self.value))
        return (*content, *((0, 0) if t is None else t.stride()[:2] for t in tables))

    def sizes(self) -> tuple[int, int, int]:
        return self.query.size(1), self.query.size(2), self.key.size(2)

    def numbers(self) -> tuple[float, int, int, float]:
        return self.scale, self.first_head, self.threshold, 256.0 / (256 - self.threshold)

    def flags(self, tile: int) -> dict[str, Any]:
        return {
            "C2P": self.position_key is not None,
            "P2C": self.position_query is not None,
            "HAS_MASK": self.begin is not None,
            "HAS_REAL": self.real is not None,
            "HAS_SLOTS": self.slots is not None,
            "EDGE": self.num_rows % tile != 0 or self.key.size(2) % tile != 0,
            "DROPOUT": self.seed is not None,
            "ROUNDS": ROUNDS,
            "HEAD": self.query.size(3),
        }


def gluon_takes(query: Tensor, key: Tensor, value: Tensor, tables: list[Tensor]) -> bool:
    """Whether the kernels in Gluon take a call: with tables, two-byte numbers, few head sizes; they copy 16 bytes."""
    aligned = (
        tensor.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in tensor.stride()[:-1])
        for tensor in (query, key, value, *tables)
    )
    return bool(tables) and query.element_size() == 2 and query.size(-1) in GLUON_HEAD_SIZES and all(aligned)
