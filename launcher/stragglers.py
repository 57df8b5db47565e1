"""Which rank keeps the others waiting without hanging, told from the lines that they write anyway. Pure.

Compared is the work of a rank by itself, never the length of its steps: those are the same on all ranks, which wait for
the slowest in every collective. Ranks of different pipeline stages have different work and are not compared.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megadeberta.rank.heartbeat import Beat

_WINDOW_STEPS, _WINDOW_SECONDS = 8, 2.5
"""What a rank is judged by; two windows in a row must say the same, so a rank is named after 16 to 20 steps."""
_BUSY_RATIO = 2.0
"""Own work of a straggler against that of the middle one of the others."""
_LEAST_BUSY = 0.002
"""Seconds of own work per step below which nothing is said: clocks and jitter."""
_DATA_FRACTION = 0.25
"""Of the length of a step: what waiting for data must take to be worth a line."""


@dataclass(frozen=True)
class Pace:
    """One rank in one window, per step."""

    busy: float
    data: float
    wall: float


@dataclass(frozen=True)
class Straggler:
    """A rank that was named, and why."""

    rank: int
    reason: str


class Stragglers:
    """Judges each window of steps; names a rank once until it keeps up again."""

    def __init__(self, group_of: Callable[[int], int]) -> None:
        """
        Args:
            group_of: ranks with the same number have the same work: their pipeline stage.
        """
        self._group_of = group_of
        self._from: dict[int, Beat] = {}
        self._since = 0.0
        self._last: dict[int, str] = {}
        self._named: set[tuple[int, str]] = set()

    def judge(self, beats: Mapping[int, Beat], now: float) -> list[Straggler]:
        """What there is to say now; call it with every rank's newest beat as often as you like."""
        if not beats or self._from.keys() != beats.keys():  # ranks have ended, all of them perhaps
            self._from, self._since = dict(beats), now
            return []
        done = [beats[rank].steps - first.steps for rank, first in self._from.items()]
        if min(done) < _WINDOW_STEPS or now - self._since < _WINDOW_SECONDS:
            return []
        paces = {rank: _pace(first, beats[rank], now - self._since) for rank, first in self._from.items()}
        self._from, self._since = dict(beats), now
        found = {rank: finding for rank in paces if (finding := self._find(rank, paces))}
        again = [(rank, kind) for rank, (kind, _) in found.items() if self._last.get(rank) == kind]
        self._last = {rank: kind for rank, (kind, _) in found.items()}
        self._named &= set(again)
        fresh = [pair for pair in again if pair not in self._named]
        self._named |= set(fresh)
        return [Straggler(rank, found[rank][1]) for rank, _ in fresh]

    def _find(self, rank: int, paces: Mapping[int, Pace]) -> tuple[str, str] | None:
        """Kind and words of what is wrong with a rank in this window."""
        own = paces[rank]
        peers = [
            pace for other, pace in paces.items() if other != rank and self._group_of(other) == self._group_of(rank)
        ]
        if not peers:
            return None
        data, busy = _middle([pace.data for pace in peers]), _middle([pace.busy for pace in peers])
        if own.data > max(_DATA_FRACTION * own.wall, _BUSY_RATIO * data):
            return "data", (
                f"waits {own.data:.3f} s of each step for its batch, the others {data:.3f} s: look at the storage and "
                "at the cores of its loader (data.loader_workers)"
            )
        if own.busy > max(_LEAST_BUSY, _BUSY_RATIO * busy) and busy > 0:
            return "busy", (
                f"works {own.busy:.3f} s by itself in each step, the others {busy:.3f} s: look at the clock rate, the "
                "temperature and other processes of its machine"
            )
        return None


def _pace(first: Beat, last: Beat, seconds: float) -> Pace:
    steps = last.steps - first.steps
    return Pace((last.busy - first.busy) / steps, (last.data - first.data) / steps, seconds / steps)


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)
