"""What an objective makes of sequences of tokens: inputs, and the targets in them."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import Words
from megadeberta.data.masking import MaskedBatch, MlmMasker
from megadeberta.data.next_token import NextTokenTargets
from megadeberta.errors import ConfigError
from megadeberta.layers.objectives import objective_of


class Targets(Protocol):
    """Makes inputs and targets; every draw depends on the sequence's own key and on nothing around it.

    Workers get a copy by pickle.
    """

    def __call__(self, tokens: NDArray[np.int64], sample_keys: Words) -> MaskedBatch:
        """For ``tokens [B, L]`` with ``sample_keys [B]``."""

    def at_rate(self, rate: float) -> "Targets":
        """The same with another ``mask_rate``; asked for where the recipe has a schedule of it, and only there."""


TARGETS: dict[str, Callable[..., Targets]] = {"masked": MlmMasker, "next_token": NextTokenTargets}
"""By ``Objective.targets``; called with the objective section, the kinds of the pieces and the id of [MASK]."""


def register_targets(name: str, make: Callable[..., Targets]) -> None:
    """Add a way to make targets; a module of ``plugins`` calls it.

    Raises:
        ConfigError: another one has the name.
    """
    if TARGETS.setdefault(name, make).__qualname__ != make.__qualname__:
        raise ConfigError(f"targets {name!r} are registered twice; choose another name")
    TARGETS[name] = make


def load_targets(objective: ObjectiveConfig, piece_kinds: NDArray[np.uint8], *, mask_id: int) -> Targets:
    """What the objective makes of sequences.

    Args:
        piece_kinds: ``PieceKind`` of every id, ``[num_pieces + 1]``.

    Raises:
        ConfigError: it has a schedule of mask rates, and targets that know one rate alone.
    """
    name = objective_of(objective).targets
    targets = TARGETS[name](objective, piece_kinds, mask_id=mask_id)
    if objective.mask_rate_schedule is not None and not hasattr(targets, "at_rate"):
        raise ConfigError(
            f"objective.mask_rate_schedule is set, and the targets {name!r} have no method at_rate for another rate; "
            "add it, or leave the schedule out"
        )
    return targets
