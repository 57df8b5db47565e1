"""The model is a list of layer specs: one process builds the whole list, a pipeline stage a slice of it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Tie:
    """A parameter that two layers share: ``attribute`` of the later layer is the parameter named ``source``."""

    attribute: str
    source: str


@dataclass(frozen=True)
class LayerSpec:
    """One layer by its global name, which is the prefix of its parameter names under every layout."""

    name: str
    build: Callable[[], nn.Module]
    ties: tuple[Tie, ...] = ()
