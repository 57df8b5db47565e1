"""Which rank of a job hangs, told from the lines that its ranks write once a second. Pure: the caller brings the time.

Ranks wait for each other, so only those that are furthest behind can be at fault: a rank that waits in step 8 for one
that still reads its batch is not late, however long that takes. The deadline is that of the phase in which the hindmost
are; of a step it follows from the run's own step times.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from megadeberta.config.training import SupervisionConfig
from megadeberta.rank.heartbeat import Beat, Phase, beat_seconds

_STEP_TIMES = 20
_SLOWEST_FACTOR = 3.0
"""Of the slowest of them: a machine that stalled for a while may do so again, and longer."""
_TRAINING_PHASES = frozenset({Phase.DATA, Phase.COMPILE, Phase.STEP})
_QUIET_PHASES = (Phase.DATA, Phase.STEP, Phase.EVALUATE)
"""In these no call holds the interpreter for long: a process that says nothing is stopped or stuck."""
_QUIET_BEATS = 3
_STOPPED_FRACTION = 0.6
"""Of the time of silence: the system's word for it needs less."""
_STOPPING_SECONDS, _STOPPING_FACTOR, _STOPPING_DATA_SECONDS = 5.0, 3.0, 30.0
"""Least time and factor of a step, and time for a batch, once the run is told to stop: the user waits."""


@dataclass
class _Rank:
    beat: Beat
    at: float
    """When the beat came."""
    stepped_at: float | None = None
    """When its step began, as its beats tell; None while it does something else than steps."""
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=_STEP_TIMES))
    compile_time: float | None = None
    """Seconds of the last of the first steps: what is known of a step before there is another one."""

    def known_times(self) -> tuple[float, ...]:
        """Seconds of its last steps; those that compile count only while there are no others."""
        if self.step_times or self.compile_time is None:
            return tuple(self.step_times)
        return (self.compile_time,)


@dataclass(frozen=True)
class Hang:
    """Ranks that do not get on."""

    ranks: tuple[int, ...]
    reason: str
    """In words, of all of them: e.g. ``said nothing for 16 s in step 8``."""


class Heartbeats:
    """Of all ranks of one start."""

    def __init__(self, limits: SupervisionConfig, *, world_size: int, now: float) -> None:
        self._limits = limits
        self._world_size = world_size
        self._ranks = {rank: _Rank(Beat(rank, Phase.START, 0, 0.0, 0, 0.0, 0.0), now) for rank in range(world_size)}
        self._trained = False
        self.stopping_since: float | None = None
        """When the run was told to stop."""

    @property
    def trained(self) -> bool:
        """Whether a rank has finished a step."""
        return self._trained

    @property
    def beats(self) -> Mapping[int, Beat]:
        """The last one of each rank."""
        return {number: rank.beat for number, rank in self._ranks.items()}

    def take(self, beat: Beat, now: float) -> None:
        """A line has come."""
        known = self._ranks.get(beat.rank)
        if known is None:  # it has ended, or is none of this job's
            return
        last = known.beat
        self._trained |= beat.steps > 0
        if beat.phase not in _TRAINING_PHASES:
            known.stepped_at = None
        elif known.stepped_at is None:
            known.stepped_at = now - beat.seconds
        elif beat.step > last.step:
            seconds = (now - known.stepped_at) / (beat.step - last.step)
            if last.phase is Phase.COMPILE:
                known.compile_time = seconds
            else:
                known.step_times.append(seconds)
            known.stepped_at = now
        known.beat, known.at = beat, now

    def forget(self, ranks: Iterable[int]) -> None:
        """These have ended: others decide what that means."""
        for rank in ranks:
            self._ranks.pop(rank, None)

    def find_hang(self, now: float, *, stopped: Mapping[int, float]) -> Hang | None:
        """The ranks that hang, if any do.

        Args:
            stopped: ranks whose process the system says is stopped, and for how many seconds.
        """
        if not self._ranks:
            return None
        silence = self._silence()
        if frozen := tuple(rank for rank, seconds in stopped.items() if seconds >= _STOPPED_FRACTION * silence):
            return Hang(frozen, f"stopped for {stopped[frozen[0]]:.0f} s (SIGSTOP or a debugger)")
        mute = {
            number: now - rank.at
            for number, rank in self._ranks.items()
            if rank.beat.phase in _QUIET_PHASES and now - rank.at >= max(silence, _QUIET_BEATS * self._pause)
        }
        return self._silent(mute) if mute else self._find_late(now)

    def _silent(self, mute: Mapping[int, float]) -> Hang:
        """``mute``: how long each has said nothing."""
        first = self._ranks[min(mute)].beat
        return Hang(tuple(mute), f"silent for {max(mute.values()):.0f} s, in {_where(first)}")

    def _find_late(self, now: float) -> Hang | None:
        hindmost = min((rank.beat.step, rank.beat.phase) for rank in self._ranks.values())
        behind = {number: rank for number, rank in self._ranks.items() if (rank.beat.step, rank.beat.phase) == hindmost}
        limit = self._limit(Phase(hindmost[1]))
        since = {number: rank.beat.seconds + now - rank.at for number, rank in behind.items()}
        if min(since.values()) < limit:
            return None
        # Of ranks that are late together, those that say nothing hold the others up.
        mute = {number: now - rank.at for number, rank in behind.items() if now - rank.at >= _QUIET_BEATS * self._pause}
        if hindmost[1] in _QUIET_PHASES and 0 < len(mute) < len(behind):
            return self._silent(mute)
        first = behind[min(behind)].beat
        return Hang(tuple(behind), f"for {min(since.values()):.0f} s in {_where(first)}, of at most {limit:.0f} s")

    @property
    def _pause(self) -> float:
        return beat_seconds(self._world_size)

    def _silence(self) -> float:
        return self._limits.silence_seconds if self.stopping_since is None else _STOPPING_SECONDS

    def _step_limit(self) -> float:
        stopping = self.stopping_since is not None
        least = _STOPPING_SECONDS if stopping else self._limits.step_seconds
        factor = _STOPPING_FACTOR if stopping else self._limits.step_factor
        times = [known for rank in self._ranks.values() if (known := rank.known_times())]
        if not times and not stopping:
            return self._limits.compile_seconds
        expected = [max(factor * median(known), _SLOWEST_FACTOR * max(known)) for known in times]
        # A line may be older than the step that it does not tell of yet.
        return max(least, *expected, _QUIET_BEATS * self._pause)

    def _limit(self, phase: Phase) -> float:
        limits = self._limits
        if phase is Phase.STEP:
            return self._step_limit()
        return {
            Phase.START: limits.start_seconds,
            Phase.COMPILE: limits.compile_seconds,
            Phase.DATA: limits.data_seconds if self.stopping_since is None else _STOPPING_DATA_SECONDS,
            Phase.EVALUATE: limits.evaluate_seconds,
            Phase.SAVE: limits.save_seconds,
            Phase.END: limits.save_seconds,
        }[phase]


def _where(beat: Beat) -> str:
    step = f"step {beat.step}"
    return {
        Phase.START: "its start",
        Phase.DATA: f"the wait for the batch of {step}",
        Phase.COMPILE: f"{step}, which may compile kernels",
        Phase.STEP: step,
        Phase.EVALUATE: f"the validation after {step}",
        Phase.SAVE: f"the checkpoint after {step}",
        Phase.END: "its end",
    }[beat.phase]
