"""What a measurement is for the worker process: a function that yields findings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What a measurement yields, each at once when it is known."""

    values: dict[str, Any]
    about: str = ""
    """What of the measurement, if it has several findings; it follows the measurement's name."""
    kind: str = ""
    """Another one than the measurement's."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Besides the measurement's."""


Measure = Callable[[dict[str, Any]], Iterator[Finding]]
"""From the parameters of the plan to the findings. Modules of measurements import torch only, and all else where it is
used: the op must run where nothing else is installed."""


class WrongResultError(Exception):
    """What was to be timed computes something else; no time of it is worth printing."""
