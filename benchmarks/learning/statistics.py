"""Means over seeds with 95 % intervals, by Student's t; differences are paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t


@dataclass(frozen=True)
class Estimate:
    """A mean and half of the width of its 95 % interval."""

    mean: float
    half: float | None
    """None of a single value."""
    seeds: int

    @property
    def low(self) -> float:
        """The interval's lower end; without an interval, minus infinity."""
        return float("-inf") if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """Its upper end; without an interval, infinity."""
        return float("inf") if self.half is None else self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or -1 where zero is outside of the interval, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def show(self, digits: int, *, signed: bool = False) -> str:
        """``0.712 ± 0.013``; a single value alone."""
        sign = "+" if signed else ""
        half = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{half}"


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value per seed, at least one."""
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Estimate(mean(values), half, len(values))


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """Of ``values`` over ``others``, both by seed, over the seeds of both; None where there is none."""
    seeds = sorted(values.keys() & others.keys())
    return estimate([values[seed] - others[seed] for seed in seeds]) if seeds else None
