"""What a local job's rank exits mean together: one exit code, and the error lines to show, root cause first. Pure."""

import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED

ERROR_PREFIX = "error: "


@dataclass(frozen=True)
class RankExit:
    """End of one rank. ``code`` is subprocess's: below 0 = killed by that signal. ``errors``: its ``error: `` lines.
    ``reason``: what is known of a SIGKILL."""

    rank: int
    pid: int
    code: int
    errors: tuple[str, ...] = ()
    ended_by_launcher: bool = False
    reason: str = ""

    def describe(self) -> str:
        """One line without a full stop, e.g. ``rank 1 (pid 123) was killed by SIGKILL``."""
        who = f"rank {self.rank} (pid {self.pid})"
        if self.code >= 0:
            return f"{who} exited with code {self.code}"
        name = signal.Signals(-self.code).name if -self.code in set(signal.Signals) else f"signal {-self.code}"
        return f"{who} was killed by {name}"


@dataclass(frozen=True)
class Verdict:
    """Exit code of the job, and the lines to print before it."""

    exit_code: int
    lines: tuple[str, ...]
    trained: bool = False
    """Whether the ranks had finished a step: an error before that will come again."""


def judge(exits: Sequence[RankExit], *, forwarded: Collection[int] = ()) -> Verdict:
    """Find the root cause among the ends of all ranks, given in the order in which they ended.

    A rank that lost a peer (80) or was ended by the launcher is a consequence, never the cause. A rank killed by a
    signal that the launcher had forwarded had not begun to train: it counts as pre-empted, since nothing is lost.

    Args:
        forwarded: signals that the launcher passed on to the ranks.
    """
    preempted = [end for end in exits if end.code == EXIT_PREEMPTED or -end.code in forwarded]
    causes = [
        end
        for end in exits
        if end.code not in (0, EXIT_PEER_LOST) and end not in preempted and not end.ended_by_launcher
    ]
    lost = [end for end in exits if end.code == EXIT_PEER_LOST]
    if causes:
        return Verdict(causes[0].code if causes[0].code > 0 else EXIT_PEER_LOST, _cause_lines(causes))
    if preempted:
        return Verdict(EXIT_PREEMPTED, _preempted_lines(preempted, exits, forwarded))
    if lost:
        return Verdict(EXIT_PEER_LOST, _lost_lines(lost, exits))
    return Verdict(0, _unique(line for end in exits for line in end.errors))


def _cause_lines(causes: Sequence[RankExit]) -> tuple[str, ...]:
    first, *others = causes
    lines = list(first.errors) or [ERROR_PREFIX + first.describe() + _hint(first)]
    shown = set(lines)
    for end in others:
        # A rank without a line of its own that ended like the first (same traceback, same code) adds nothing.
        own = list(end.errors) or ([ERROR_PREFIX + end.describe()] if end.code != first.code else [])
        lines += [f"[rank {end.rank}] {line}" for line in own if line not in shown]
        shown.update(own)
    return tuple(lines)


def _hint(end: RankExit) -> str:
    if end.code == -signal.SIGKILL:
        reason = end.reason or "the usual cause is a lack of memory (see dmesg)"
        return f"; {reason}; the same command resumes"
    if end.code < 0:
        return "; the same command resumes"
    return "; its last lines are above"


def _preempted_lines(
    preempted: Sequence[RankExit], exits: Sequence[RankExit], forwarded: Collection[int]
) -> tuple[str, ...]:
    lines = list(_unique(line for end in exits if end.code != EXIT_PEER_LOST for line in end.errors))
    early = next((end for end in preempted if -end.code in forwarded), None)
    if early is not None and all(end.code != EXIT_PREEMPTED for end in exits):
        lines.append(f"stopped by {signal.Signals(-early.code).name} before training began; the same command resumes")
    return tuple(lines)


def _lost_lines(lost: Sequence[RankExit], exits: Sequence[RankExit]) -> tuple[str, ...]:
    hung = [end for end in exits if end.ended_by_launcher and end.code == -signal.SIGKILL]
    lines = [
        f"{ERROR_PREFIX}rank {end.rank} (pid {end.pid}) hung: it answered neither its peers nor SIGTERM and was "
        "killed; the same command resumes"
        for end in hung
    ]
    first = exits[0]
    if first.code == 0 and not first.errors:
        lines.append(f"{ERROR_PREFIX}{first.describe()} before the others were done; the same command resumes")
    lines += _unique(line for end in lost for line in end.errors)
    return tuple(lines or [ERROR_PREFIX + lost[0].describe() + ": it lost a peer; the same command resumes"])


def _unique(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))
