"""One start of a run on several machines; at a restart, first wait until enough of them answer again."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, ParallelError, StorageError
from megadeberta.launcher.hosts.choice import HostChoice
from megadeberta.launcher.hosts.environment import check_variables
from megadeberta.launcher.hosts.hostfile import write_hostfile
from megadeberta.launcher.hosts.pdsh import ask_nodes
from megadeberta.launcher.hosts.supervise import HostsRun, launch_hosts, new_job
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.verdict import ERROR_PREFIX, Verdict
from megadeberta.rank.environment import DEFAULT_MASTER_PORT

_HOSTS_BACK_SECONDS = 600.0
"""How long a restart waits for machines or links that are gone."""
_FEWER_SECONDS = 60.0
"""The same where it may go on with fewer of them."""
_ASK_AGAIN_SECONDS = 5.0
_POLL_SECONDS = 0.1

Unfit = Mapping[str, ParallelError | StorageError]


@dataclass
class HostsStart:
    """Starts the ranks of a run on machines of ``choice``, again and again under the same mark."""

    choice: HostChoice
    command: Callable[..., list[str]]
    """Gives DeepSpeed's launcher for a hostfile and ``master_port=...``, ``master_addr=...``."""
    find_unfit: Callable[..., Unfit]
    """Hosts that cannot run this, and why; takes ``environ=...``."""
    environ: Mapping[str, str]
    say: Callable[[str], None]
    """Shows the user a line."""
    master_port: int | None = None
    """None: 29500, and another one at each restart, since connections of the last one may still linger."""
    master_addr: str | None = None
    """Of the first host of the file, while it is the first that trains."""
    run: Callable[[Sequence[str]], HostsRun] | None = None
    """What to watch the ranks on these hosts for hangs with."""
    job: str = field(default_factory=new_job)
    hosts: list[str] = field(default_factory=list)
    """Of the last start, or the next one."""

    def check(self) -> None:
        """What can be wrong before anything starts. A spare host that is unfit is a warning.

        Raises:
            ConfigError, ParallelError, StorageError: naming the word, the variable or the host.
        """
        self.hosts = list(self.choice.slots)[: self.choice.needed]
        with tempfile.TemporaryDirectory(prefix="megadeberta-") as folder:
            self._command(Path(folder), 0)
        check_variables(self.environ)
        unfit = self.find_unfit(environ=self.environ)
        self.hosts = self.choice.whole(self.choice.slots.keys() - unfit.keys())
        if not self.hosts:
            raise next(iter(unfit.values()))
        for error in unfit.values():
            self.say(f"warning: without a host: {error}")

    def __call__(self, number: int, inbox: SignalInbox) -> Verdict:
        if number and (ended := self._wait_for_hosts(inbox)) is not None:
            return ended
        run = None if self.run is None else self.run(self.hosts)
        with tempfile.TemporaryDirectory(prefix="megadeberta-") as folder:
            command = self._command(Path(folder), number)
            return launch_hosts(command, hosts=self.hosts, environ=self.environ, job=self.job, inbox=inbox, run=run)

    def _command(self, folder: Path, number: int) -> list[str]:
        hostfile = write_hostfile(folder / "hosts", {host: self.choice.slots[host] for host in self.hosts})
        address = self.master_addr if self.hosts[0] == next(iter(self.choice.slots)) else None
        port = self.master_port or DEFAULT_MASTER_PORT + number % 100
        return self.command(hostfile, master_port=port, master_addr=address)

    def _wait_for_hosts(self, inbox: SignalInbox) -> Verdict | None:
        """Until enough hosts answer and nothing of the last start is left on them; the verdict where the run ends.

        Raises:
            StorageError: a host that is needed has no space.
        """
        words = ["megadeberta.launcher.hosts.node_signal", self.job, Signals.SIGKILL.name]
        started = time.monotonic()
        while True:
            ask_nodes(list(self.choice.slots), words, environ=self.environ)
            unfit = self.find_unfit(environ=self.environ)
            waited = time.monotonic() - started
            if self._choose(self.choice.slots.keys() - unfit.keys(), may_be_fewer=waited >= _FEWER_SECONDS):
                return None
            for error in unfit.values():
                if isinstance(error, StorageError):
                    raise error
            if waited >= _HOSTS_BACK_SECONDS:
                reason = next(iter(unfit.values()))
                line = f"{ERROR_PREFIX}not all machines came back within {_HOSTS_BACK_SECONDS:.0f} s: {reason}"
                return Verdict(EXIT_PEER_LOST, (line,))
            asked = time.monotonic()
            while time.monotonic() < asked + _ASK_AGAIN_SECONDS:
                if inbox.take() is not None:
                    line = "stopped while waiting for machines to come back; the same command resumes"
                    return Verdict(EXIT_PREEMPTED, (line,))
                time.sleep(_POLL_SECONDS)

    def _choose(self, able: set[str], *, may_be_fewer: bool) -> bool:
        """Whether there are hosts for a start; what is not as at the last one is said."""
        chosen = self.choice.whole(able) or (self.choice.fewer(able) if may_be_fewer else [])
        if not chosen:
            return False
        new = [host for host in chosen if host not in self.hosts]
        gone = [host for host in self.hosts if host not in chosen]
        if len(chosen) != len(self.hosts):
            ranks = self.choice.ranks_of(chosen)
            self.say(
                f"going on with {len(chosen)} of {self.choice.needed} machines, {ranks} of {self.choice.world_size} "
                f"ranks: {', '.join(chosen)}; the batch of a step stays as it is"
            )
        elif new:
            self.say(f"going on with {', '.join(new)} in the place of {', '.join(gone)}")
        self.hosts = chosen
        return True
