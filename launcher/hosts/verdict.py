"""What the ends of several machines mean together: one exit code, and the lines to show. Pure."""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USAGE
from megadeberta.launcher.hosts.pdsh import CONNECTION_LOST
from megadeberta.launcher.verdict import ERROR_PREFIX, Verdict

_RESUME = "the same command resumes"


@dataclass(frozen=True)
class HostExit:
    """How one machine's ranks ended, as pdsh reports it. Machines that ended well are not reported.

    ``code`` is that of the first rank that failed there; DeepSpeed's node launcher turns a rank that was killed by a
    signal into 256 minus the signal's number.
    """

    host: str
    code: int
    ended_by_launcher: bool = False

    @property
    def lost(self) -> bool:
        """Whether ssh to the machine broke off, so that nothing is known about its ranks."""
        return self.code == CONNECTION_LOST

    @property
    def killed_by(self) -> int:
        """The signal that ended the rank, or 0."""
        return 256 - self.code if 128 < self.code < CONNECTION_LOST else 0

    def describe(self) -> str:
        """One line without a full stop."""
        if self.lost:
            return f"the connection to {self.host} was lost"
        if self.killed_by:
            known = self.killed_by in set(signal.Signals)
            name = signal.Signals(self.killed_by).name if known else f"signal {self.killed_by}"
            return f"a rank on {self.host} was killed by {name}"
        return f"a rank on {self.host} ended with code {self.code}; its last lines are above"


def judge_hosts(
    exits: Sequence[HostExit], *, runner_code: int, left: Sequence[str] = (), forwarded: Collection[int] = ()
) -> Verdict:
    """Find the root cause among the ends of the machines, given in the order in which they ended.

    Args:
        runner_code: exit code of DeepSpeed's launcher; 0 says little.
        left: machines on which ranks were still alive after it.
        forwarded: signals that were passed on to the ranks.
    """
    own = [end for end in exits if not end.ended_by_launcher]
    # A rank that the signal met before it had begun to train was ended by it: nothing is lost.
    preempted = [end for end in own if end.code == EXIT_PREEMPTED or end.killed_by in forwarded]
    causes = [end for end in own if end.code != EXIT_PEER_LOST and not end.lost and end not in preempted]
    lost = [end for end in exits if end.lost]
    if causes:
        first = causes[0]
        hint = f"; {_RESUME}" if first.killed_by else ""
        return Verdict(EXIT_PEER_LOST if first.killed_by else first.code, (ERROR_PREFIX + first.describe() + hint,))
    if preempted:
        return Verdict(EXIT_PREEMPTED, tuple(f"{ERROR_PREFIX}{end.describe()}" for end in lost))
    if lost:
        return Verdict(EXIT_PEER_LOST, tuple(f"{ERROR_PREFIX}{end.describe()}; {_RESUME}" for end in lost))
    if exits:
        line = f"{ERROR_PREFIX}the ranks on {exits[0].host} lost a peer; {_RESUME}"
        return Verdict(EXIT_PEER_LOST, (line,))
    if left:
        line = f"{ERROR_PREFIX}pdsh ended before the ranks on {', '.join(left)}, which were killed; {_RESUME}"
        return Verdict(EXIT_PEER_LOST, (line,))
    if runner_code:
        line = f"{ERROR_PREFIX}DeepSpeed's launcher ended with code {runner_code}; its last lines are above"
        return Verdict(runner_code if runner_code > 0 else EXIT_USAGE, (line,))
    return Verdict(0, ())
