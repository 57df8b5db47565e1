"""What one optimizer step is made of: its updates, the loss terms of each, and how many targets each term has.

Shapes: B micro batch · L length · Q target rows a sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One update: ``part`` of the model (None = all of it) from the sum of ``weights`` x loss terms."""

    part: str | None
    weights: Mapping[str, float]


def training_phases(objective: ObjectiveConfig) -> tuple[Phase, ...]:
    """One update a step; two where generator and discriminator are trained one after the other."""
    weights = objective.loss_weights
    if objective.name == "rtd" and objective.rtd.decoupled:
        return (
            Phase(GENERATOR, {"mlm_loss": weights["mlm_loss"]}),
            Phase(DISCRIMINATOR, {"rtd_loss": weights["rtd_loss"]}),
        )
    return (Phase(None, weights),)


def count_targets(term: str, batch: Batch) -> Tensor:
    """Targets of the loss term in a batch: a scalar."""
    if term == "rtd_loss":
        return batch["attention_mask"].sum()
    is_target = batch["masked_labels"] != 0
    prefix_lengths = batch.get("prefix_lengths")
    if prefix_lengths is not None:
        is_whole = (prefix_lengths >= batch["input_ids"].size(1)).unsqueeze(-1)
        is_target = is_target & (is_whole if term == "mlm_loss" else ~is_whole)
    return is_target.sum()


@dataclass(frozen=True)
class Terms:
    """Named (sum, count) pairs over all ranks; a term's value is its mean."""

    sums: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def means(self) -> dict[str, float]:
        """The terms that have a count, in their order."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}

    def total(self, phases: Sequence[Phase]) -> float:
        """The weighted sum of the loss terms that the phases minimise; NaN when none of them has a target."""
        means = self.means
        parts = [w * means[name] for phase in phases for name, w in phase.weights.items() if name in means]
        return math.fsum(parts) if parts else math.nan
