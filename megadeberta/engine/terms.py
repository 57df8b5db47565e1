"""Terms summed over all ranks, and the loss that they make."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.layers.objectives import Update

TermPair = tuple[Tensor, Tensor]
"""(sum, count) of a term over a micro batch, both scalars."""


@dataclass(frozen=True)
class Terms:
    """Named (sum, count) pairs over all ranks; a term's value is its mean."""

    sums: Mapping[str, float]
    counts: Mapping[str, int]

    @classmethod
    def joined(cls, parts: Sequence["Terms"]) -> "Terms":
        """Over the sequences of all parts."""
        names = {name: None for part in parts for name in part.sums}
        return cls(
            {name: math.fsum(part.sums.get(name, 0.0) for part in parts) for name in names},
            {name: sum(part.counts.get(name, 0) for part in parts) for name in names},
        )

    @property
    def means(self) -> dict[str, float]:
        """The terms that have a count, in their order."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}

    def total(self, updates: Sequence[Update]) -> float:
        """The weighted sum of the loss terms that the updates minimise; NaN when none of them has a target."""
        means = self.means
        parts = [w * means[name] for update in updates for name, w in update.weights.items() if name in means]
        return math.fsum(parts) if parts else math.nan


@dataclass(frozen=True)
class TermSums:
    """Terms while they are added up, in one tensor on the device. values: fp64 ``[terms, 2]``, (sum, count) of each."""

    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, terms: Mapping[str, TermPair]) -> "TermSums":
        """Of one micro batch: few operations for all of them together."""
        scalars = [scalar.detach() for pair in terms.values() for scalar in pair]
        wide: dict[int, Tensor] = {}
        for dtype in {scalar.dtype: None for scalar in scalars}:
            places = [place for place, scalar in enumerate(scalars) if scalar.dtype == dtype]
            wide |= zip(places, torch.stack([scalars[place] for place in places]).double().unbind(), strict=True)
        return cls(tuple(terms), torch.stack([wide[place] for place in range(len(scalars))]).view(-1, 2))

    def plus(self, terms: Mapping[str, TermPair]) -> "TermSums":
        """With another micro batch, which has the same terms."""
        return TermSums(self.names, self.values + TermSums.of(terms).values)

    def copy(self) -> "TermSums":
        """In memory of its own."""
        return TermSums(self.names, self.values.clone())

    def total(self, name: str) -> Tensor:
        """The sum of a term: a scalar."""
        return self.values[self.names.index(name), 0]

    def read(self, numbers: Sequence[float]) -> Terms:
        """As terms. numbers: those of ``values`` on the host, flattened."""
        counts = {name: int(count) for name, count in zip(self.names, numbers[1::2], strict=True)}
        return Terms(dict(zip(self.names, numbers[::2], strict=True)), counts)
