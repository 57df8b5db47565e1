"""Terms summed over all ranks, and the loss that they make."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megadeberta.layers.objectives import Update


@dataclass(frozen=True)
class Terms:
    """Named (sum, count) pairs over all ranks; a term's value is its mean."""

    sums: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def means(self) -> dict[str, float]:
        """The terms that have a count, in their order."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}

    def total(self, updates: Sequence[Update]) -> float:
        """The weighted sum of the loss terms that the updates minimise; NaN when none of them has a target."""
        means = self.means
        parts = [w * means[name] for update in updates for name, w in update.weights.items() if name in means]
        return math.fsum(parts) if parts else math.nan
