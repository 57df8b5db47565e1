"""Looks at the ranks of one start: hangs end it, stragglers are named. The job brings lines, and ends the ranks."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megadeberta.config.training import SupervisionConfig
from megadeberta.errors import EXIT_HUNG
from megadeberta.launcher.heartbeats import Hang, Heartbeats
from megadeberta.launcher.network_log import NetworkLog
from megadeberta.launcher.stacks import main_stack, outside_collectives
from megadeberta.launcher.stragglers import Stragglers
from megadeberta.launcher.verdict import ERROR_PREFIX, Verdict
from megadeberta.rank.heartbeat import Beat

_STACKS_SECONDS = 2.0
"""From asking for the stacks until they are in the log."""
_LONGEST_TURN = 1.0
"""A launcher that was suspended itself has not waited."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class Supervised:
    """What the launcher must know of a run to watch its ranks."""

    limits: SupervisionConfig = field(default_factory=SupervisionConfig)
    group_of: Callable[[int], int] = lambda rank: 0
    """Ranks with the same number have the same work: their pipeline stage."""
    network_log: Path | None = None
    """What the network libraries write goes there; None: to the screen."""


class Watch:
    """One for each start."""

    def __init__(
        self,
        run: Supervised,
        *,
        world_size: int,
        ask_stacks: Callable[[], None],
        say: Callable[[str], None],
        name: Callable[[int], str],
    ) -> None:
        """
        Args:
            ask_stacks: makes all ranks write their stacks to the log.
            say: shows the user a line.
            name: of a rank, with its process or host.
        """
        self._turned = time.monotonic()
        self._now = 0.0
        self._heartbeats = Heartbeats(run.limits, world_size=world_size, now=0.0)
        self._stragglers = Stragglers(run.group_of)
        self._ask_stacks, self._say, self._name = ask_stacks, say, name
        self._network = NetworkLog(run.network_log, say)
        self._hang: Hang | None = None
        self._asked_at = 0.0
        self._stacks: dict[int, list[str]] = {}
        self._stopped: dict[int, float] = {}

    @property
    def trained(self) -> bool:
        """Whether a rank has finished a step."""
        return self._heartbeats.trained

    @property
    def hung_ranks(self) -> tuple[int, ...]:
        """Those that were found hung."""
        return self._hang.ranks if self._hang is not None else ()

    def take(self, rank: int | None, text: str) -> bool:
        """A line of a rank's standard error, None where it is not known whose; whether it is for nobody else."""
        beat = Beat.parse(text)
        if beat is not None:
            self._heartbeats.take(beat, self._now)
            return True
        if self._network.take(rank, text):
            return True
        if self._hang is not None and rank is not None:
            self._stacks.setdefault(rank, []).append(text)
        return False

    def close(self) -> None:
        """All ranks are gone."""
        self._network.close()

    def look(self, *, ended: Collection[int], stopped: Collection[int], stopping: bool) -> Verdict | None:
        """Call it several times a second; the verdict when the ranks must be killed now.

        Args:
            ended: ranks that are gone.
            stopped: ranks whose processes the system says are stopped.
            stopping: whether the run was told to stop.
        """
        self._pass_time()
        self._heartbeats.forget(ended)
        if stopping and self._heartbeats.stopping_since is None:
            self._heartbeats.stopping_since = self._now
        self._stopped = {rank: self._stopped.get(rank, self._now) for rank in stopped}
        if self._hang is not None:
            return self._verdict(self._hang) if self._now >= self._asked_at + _STACKS_SECONDS else None
        since = {rank: self._now - at for rank, at in self._stopped.items()}
        self._hang = self._heartbeats.find_hang(self._now, stopped=since)
        if self._hang is not None:
            self._asked_at = self._now
            self._say(f"{self._names(self._hang.ranks)}: {self._hang.reason}. The stacks of all ranks follow")
            self._ask_stacks()
            return None
        for straggler in self._stragglers.judge(self._heartbeats.beats, self._now):
            self._say(f"warning: {self._name(straggler.rank)} is slow: it {straggler.reason}")
        return None

    def _pass_time(self) -> None:
        now = time.monotonic()
        self._now += min(_LONGEST_TURN, now - self._turned)
        self._turned = now

    def _verdict(self, hang: Hang) -> Verdict:
        """Of the ranks that are furthest behind, those that wait in no collective, if that tells them apart."""
        suspects: Mapping[int, list[str]] = {rank: self._stacks.get(rank, []) for rank in hang.ranks}
        busy = outside_collectives(suspects)
        at = ""
        if 0 < len(busy) < len(hang.ranks):
            at = "; the others wait for it in a collective"
        ranks = tuple(busy) if at else hang.ranks
        frames = main_stack(self._stacks.get(ranks[0], []))
        if len(ranks) == 1 and frames:
            at += f"; it is at {frames[0]}"
        line = f"{ERROR_PREFIX}{self._names(ranks)} hung: {hang.reason}{at}; the stacks of all ranks are above"
        return Verdict(EXIT_HUNG, (f"{line}; the same command resumes",), self.trained)

    def _names(self, ranks: Collection[int]) -> str:
        shown = [self._name(rank) for rank in sorted(ranks)[:_MOST_NAMED]]
        more = len(ranks) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")
