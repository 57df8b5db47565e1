"""What the ranks that share a model's tensors send to each other, by arithmetic.

Each layer of the catalogue lists its collectives as ``parallel/tensor/collectives.py`` makes them; a test counts the
real ones. Beside these, such ranks only sum a few scalars per update (the gradient norm).

Shapes: B batch · L length · D hidden size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megadeberta.layers.micro_batch import MicroBatch

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter"]
Pass = Literal["forward", "backward", "recompute"]


@dataclass(frozen=True)
class Collective:
    """One collective over the ranks that share the tensors."""

    kind: CollectiveKind
    phase: Pass
    what: str
    shape: tuple[int, ...]
    """Of the whole tensor: what an all-reduce sums, an all-gather ends with and a reduce-scatter begins with."""
    element_bytes: int

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.element_bytes

    def sent_bytes(self, ranks: int) -> float:
        """What each of ``ranks`` sends in a ring."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * (ranks - 1) / ranks * self.bytes


def whole_sequences(batch: MicroBatch, hidden_size: int, what: str) -> list[Collective]:
    """What a layer that reads whole sequences gathers where ranks share the tokens: ``[B, L, D]``."""
    if not batch.sequence_parallel:
        return []
    shape = (batch.sequences, batch.length, hidden_size)
    return [Collective("all_gather", "forward", what, shape, batch.element_bytes)]


def column_then_row(
    batch: MicroBatch, what: str, hidden: tuple[int, ...], *, sequence_parallel: bool
) -> list[Collective]:
    """A column-parallel layer followed by a row-parallel one, on hidden states of this shape."""
    bytes_ = batch.element_bytes
    if not sequence_parallel:
        return [
            Collective("all_reduce", "forward", f"{what} output", hidden, bytes_),
            Collective("all_reduce", "backward", f"{what} input gradient", hidden, bytes_),
        ]
    return [
        Collective("all_gather", "forward", f"{what} input", hidden, bytes_),
        Collective("reduce_scatter", "forward", f"{what} output", hidden, bytes_),
        Collective("all_gather", "backward", f"{what} output gradient", hidden, bytes_),
        Collective("all_gather", "backward", f"{what} input", hidden, bytes_),
        Collective("reduce_scatter", "backward", f"{what} input gradient", hidden, bytes_),
        Collective("all_reduce", "backward", f"{what} layer_norm gradient", (2 * hidden[-1],), bytes_),
    ]


def with_recompute(collectives: Iterable[Collective], batch: MicroBatch) -> list[Collective]:
    """Of a layer that runs forward twice under activation checkpointing."""
    listed = list(collectives)
    if not batch.activation_checkpointing:
        return listed
    forward = [replace(collective, phase="recompute") for collective in listed if collective.phase == "forward"]
    return [*listed, *forward]
