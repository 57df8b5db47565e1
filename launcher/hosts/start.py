"""One start of a run on several machines; at a restart, first wait until all of them answer again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, ParallelError
from megadeberta.launcher.hosts.environment import check_variables
from megadeberta.launcher.hosts.pdsh import ask_nodes
from megadeberta.launcher.hosts.supervise import HostsRun, launch_hosts, new_job
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.verdict import ERROR_PREFIX, Verdict
from megadeberta.rank.environment import DEFAULT_MASTER_PORT

_HOSTS_BACK_SECONDS = 600.0
"""How long a restart waits for machines or links that are gone."""
_ASK_AGAIN_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass
class HostsStart:
    """Starts the ranks of a run on ``hosts``, again and again under the same mark."""

    hosts: Sequence[str]
    command: Callable[..., list[str]]
    """Gives DeepSpeed's launcher for ``master_port=...``."""
    check_hosts: Callable[..., None]
    """Raises ParallelError where one of the hosts cannot run this; takes ``environ=...``."""
    environ: Mapping[str, str]
    master_port: int | None
    """None: 29500, and another one at each restart, since connections of the last one may still linger."""
    run: HostsRun | None = None
    """What to watch the ranks for hangs with."""
    job: str = field(default_factory=new_job)

    def check(self) -> None:
        """What can be wrong before anything starts.

        Raises:
            ConfigError, ParallelError, StorageError: naming the word, the variable or the host.
        """
        self.command(master_port=self._port(0))
        check_variables(self.environ)
        self.check_hosts(environ=self.environ)

    def __call__(self, number: int, inbox: SignalInbox) -> Verdict:
        if number and (ended := self._wait_for_hosts(inbox)) is not None:
            return ended
        command = self.command(master_port=self._port(number))
        return launch_hosts(command, hosts=self.hosts, environ=self.environ, job=self.job, inbox=inbox, run=self.run)

    def _port(self, number: int) -> int:
        return self.master_port or DEFAULT_MASTER_PORT + number % 100

    def _wait_for_hosts(self, inbox: SignalInbox) -> Verdict | None:
        """Until all hosts answer and nothing of the last start is left on them."""
        words = ["megadeberta.launcher.hosts.node_signal", self.job, Signals.SIGKILL.name]
        deadline = time.monotonic() + _HOSTS_BACK_SECONDS
        while True:
            ask_nodes(self.hosts, words, environ=self.environ)
            try:
                self.check_hosts(environ=self.environ)
                return None
            except ParallelError as error:
                if time.monotonic() >= deadline:
                    return Verdict(
                        EXIT_PEER_LOST,
                        (f"{ERROR_PREFIX}not all machines came back within {_HOSTS_BACK_SECONDS:.0f} s: {error}",),
                    )
            asked = time.monotonic()
            while time.monotonic() < asked + _ASK_AGAIN_SECONDS:
                if inbox.take() is not None:
                    line = "stopped while waiting for machines to come back; the same command resumes"
                    return Verdict(EXIT_PREEMPTED, (line,))
                time.sleep(_POLL_SECONDS)
