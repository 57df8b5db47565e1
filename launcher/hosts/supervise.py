"""Start a run on several machines through DeepSpeed's launcher, and supervise it as ``local.py`` does here.

DeepSpeed 0.19.8 alone answers a signal with ``pkill -f``, which reaches every job of the user on those machines and
saves nothing (launcher/multinode_runner.py:PDSHRunner), returns 0 when pdsh was killed (launcher/runner.py:main) and
waits forever for a machine that was switched off. So its launcher runs below this process, out of reach of signals:
they go to the ranks of this job alone, which save together; the exit codes that pdsh names for each machine are judged;
and one machine's failure ends the others.
"""

import ctypes
import json
import math
import os
import re
import secrets
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from megadeberta.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_STORAGE, ParallelError, StorageError
from megadeberta.launcher.hosts.environment import environment_lines, launcher_environment
from megadeberta.launcher.hosts.pdsh import (
    CONNECTION_LOST,
    ask_nodes,
    host_labels,
    node_command,
    parse_exit,
    ssh_environment,
)
from megadeberta.launcher.hosts.verdict import HostExit, judge_hosts
from megadeberta.launcher.relay import write_line
from megadeberta.launcher.signals import SignalInbox, listening
from megadeberta.launcher.verdict import Verdict
from megadeberta.launcher.watch import Supervised, Watch
from megadeberta.rank.heartbeat import HEARTBEAT_VARIABLE, STACKS_SIGNAL

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2
_READ_SIZE = 65_536
# After the first failure the other machines may report their own error, then are asked to end, then made to.
_NOTICE_SECONDS = 5.0
_TERM_SECONDS = 5.0
# Our own ssh to a machine that is gone gives up after 10 s.
_KILL_SECONDS = 15.0
_LOST_SECONDS = 3.0
_PREEMPTED_SECONDS = 60.0
# For the checkpoint of ranks whose launcher was killed.
_GUARD_SECONDS = 300


def find_unfit_hosts(
    hosts: Sequence[str], words: Sequence[str], *, world_size: int, environ: Mapping[str, str]
) -> dict[str, ParallelError | StorageError]:
    """Ask every host whether it can run this recipe as the first one that can; those that cannot, and why.

    Args:
        words: recipe and overrides.
    """
    answers = ask_nodes(hosts, ["megadeberta.launcher.hosts.node_check", str(world_size), *words], environ=environ)
    facts: dict[str, dict[str, str]] = {}
    unfit: dict[str, ParallelError | StorageError] = {}
    for host, answer in answers.items():
        try:
            result = json.loads(answer.output)
        except ValueError:
            said = "; ".join(answer.errors[-2:]) or f"exit code {answer.code}, without a word"
            unfit[host] = ParallelError(
                f"{host} cannot run this: {said}. It needs ssh without a password from here (try `ssh {host} true`), "
                f"and the same Python and working folder at the same paths"
            )
            continue
        if "error" in result:
            kind = StorageError if result["exit_code"] == EXIT_STORAGE else ParallelError
            unfit[host] = kind(f"on {host}: {result['error']}")
            continue
        facts[host] = result["facts"]
    for host in list(facts)[1:]:
        if (difference := _difference(facts, next(iter(facts)), host)) is not None:
            unfit[host] = difference
    return unfit


def _difference(facts: Mapping[str, Mapping[str, str]], first: str, host: str) -> ParallelError | None:
    for name, value in facts[first].items():
        if facts[host][name] != value:
            return ParallelError(
                f"{name} differs between the machines: {value} on {first}, {facts[host][name]} on {host}; "
                "install the same versions and give all machines the same files"
            )
    return None


@dataclass(frozen=True)
class HostsRun:
    """What is watched on several machines."""

    supervised: Supervised
    places: Sequence[str]
    """The host of each rank."""


def new_job() -> str:
    """A mark for the ranks of one job, the same at all its starts."""
    return secrets.token_hex(8)


def launch_hosts(
    command: Sequence[str],
    *,
    hosts: Sequence[str],
    environ: Mapping[str, str],
    job: str | None = None,
    inbox: SignalInbox | None = None,
    run: HostsRun | None = None,
) -> Verdict:
    """Run DeepSpeed's launcher ``command`` and wait for the ranks on all hosts; call it from the main thread.

    Args:
        job: what marks the ranks on the hosts; None draws it.
        inbox: signals to look at, listening already; None listens while the ranks run.
        run: what to watch the ranks for hangs with; None does without.

    Raises:
        ConfigError: a variable that must travel to the hosts and that a shell would change.
    """
    job = job or new_job()
    lines = environment_lines(environ, job=job)
    if run is not None:
        lines.append(f"{HEARTBEAT_VARIABLE}=1")
    with tempfile.TemporaryDirectory(prefix="megadeberta-") as folder:
        variables = Path(folder) / "environment"
        variables.write_text("".join(f"{line}\n" for line in lines))
        own = ssh_environment({**launcher_environment(environ), "DS_ENV_FILE": str(variables)})
        with listening(inbox) as signals:
            return _HostsJob(hosts, job, own, signals, run).run(command)


class _HostsJob:
    def __init__(
        self, hosts: Sequence[str], job: str, environ: Mapping[str, str], inbox: SignalInbox, run: HostsRun | None
    ) -> None:
        self._hosts = hosts
        self._labels = host_labels(hosts)
        self._job = job
        self._environ = environ
        self._exits: list[HostExit] = []
        self._rounds: list[subprocess.Popen[bytes]] = []
        self._inbox = inbox
        self._ended_by_us: set[str] = set()
        # When the ranks are asked to end, killed, and no longer waited for.
        self._deadlines = [math.inf, math.inf, math.inf]
        self._places = [] if run is None else run.places
        self._hung: Verdict | None = None
        self._unreachable: set[str] = set()
        self._heard: Watch | None = None
        if run is not None:
            self._heard = Watch(
                run.supervised,
                world_size=len(run.places),
                ask_stacks=self._ask_stacks,
                say=_say,
                name=lambda rank: f"rank {rank} on {run.places[rank]}",
            )

    def run(self, command: Sequence[str]) -> Verdict:
        runner = _start(command, self._environ)
        guard = self._guard(runner.pid)
        try:
            self._watch(runner)
            left = self._kill_what_is_left()
        finally:
            guard.kill()
            guard.wait()
            _kill_group(runner.pid)
            runner.wait()
            for process in self._rounds:
                process.kill()
                process.wait()
            if self._heard is not None:
                self._heard.close()
        if self._inbox.wants_kill:
            return Verdict(EXIT_INTERRUPTED, (self._inbox.describe_kill(),))
        if self._hung is not None:
            return self._hung
        verdict = judge_hosts(self._exits, runner_code=runner.returncode, left=left, forwarded=self._inbox.forwarded)
        return verdict if self._heard is None else replace(verdict, trained=self._heard.trained)

    def _watch(self, runner: subprocess.Popen[bytes]) -> None:
        """Pass the runner's standard error on, and act on signals, ends of machines and deadlines, until it ends."""
        rest, errors = b"", runner.stderr
        assert errors is not None
        os.set_blocking(errors.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(errors, selectors.EVENT_READ)
            while True:
                running = runner.poll() is None
                data = None
                if selector.select(_POLL_SECONDS if running else 0):
                    data = errors.read(_READ_SIZE)
                    *lines, rest = (rest + (data or b"")).split(b"\n")
                    for line in lines:
                        self._take_line(line)
                    if data == b"":  # closed: wait for the end without spinning
                        time.sleep(_POLL_SECONDS)
                # Not only when nothing was read: the lines of quick steps follow each other without a pause.
                if running:
                    self._forward_signals()
                    self._look_for_hangs()
                    if self._enforce_deadlines():
                        return
                elif not data:
                    return

    def _take_line(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        if self._heard is not None and self._heard.take(None, text):
            return
        ended = parse_exit(text)
        if ended is None or ended[0] not in self._labels:
            write_line(2, line + b"\n")
            return
        host, code = self._labels[ended[0]], ended[1]
        self._exits.append(HostExit(host, code, ended_by_launcher=host in self._ended_by_us))
        patience = _PREEMPTED_SECONDS if code == EXIT_PREEMPTED else _NOTICE_SECONDS
        self._deadlines[0] = min(self._deadlines[0], time.monotonic() + patience)

    def _look_for_hangs(self) -> None:
        if self._heard is None or self._hung is not None:
            return
        gone = {end.host for end in self._exits}
        ended = [rank for rank, host in enumerate(self._places) if host in gone]
        self._hung = self._heard.look(ended=ended, stopped=(), stopping=bool(self._inbox.forwarded))
        if self._hung is None:
            return
        self._deadlines = [math.inf, 0.0, math.inf]
        silent = {self._places[rank] for rank in self._heard.hung_ranks}
        if silent <= self._unreachable:
            exits = [HostExit(host, CONNECTION_LOST) for host in sorted(silent)]
            self._hung = replace(judge_hosts(exits, runner_code=0), trained=self._heard.trained)

    def _ask_stacks(self) -> None:
        """Waits for the answers, 10 s at most: a machine that gives none is lost, and its ranks are not hung."""
        for number in (STACKS_SIGNAL, signal.SIGCONT):  # a rank that is stopped can write too
            hosts = [host for host in self._running() if host not in self._unreachable]
            words = ["megadeberta.launcher.hosts.node_signal", self._job, number.name]
            answers = ask_nodes(hosts, words, environ=self._environ) if hosts else {}
            self._unreachable |= {host for host, answer in answers.items() if answer.code == CONNECTION_LOST}

    def _enforce_deadlines(self) -> bool:
        """Whether it is time to stop waiting."""
        now = time.monotonic()
        terminate, kill, leave = self._deadlines
        if now >= terminate:
            self._ended_by_us.update(self._running())
            self._tell(signal.SIGTERM)
            self._deadlines = [math.inf, now + _TERM_SECONDS, math.inf]
        elif now >= kill:
            self._tell(signal.SIGKILL)
            self._deadlines = [math.inf, math.inf, now + (_LOST_SECONDS if self._unreachable else _KILL_SECONDS)]
        return now >= leave

    def _forward_signals(self) -> None:
        while (signum := self._inbox.take()) is not None:
            if signum == signal.SIGKILL:
                self._deadlines = [math.inf, 0.0, math.inf]
            else:
                self._tell(signum)

    def _running(self) -> list[str]:
        ended = {end.host for end in self._exits}
        return [host for host in self._hosts if host not in ended]

    def _tell(self, number: signal.Signals) -> None:
        """Send a signal to this job's ranks, without waiting for the answer."""
        if hosts := self._running():
            words = ["megadeberta.launcher.hosts.node_signal", self._job, number.name]
            process = subprocess.Popen(
                node_command(hosts, words, environ=self._environ),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._rounds.append(process)

    def _guard(self, leader: int) -> subprocess.Popen[bytes]:
        """A process that outlives this one, only to tell the ranks: their connections are pdsh's and live on with it.

        They save and end as on SIGTERM; what does not is killed.
        """
        tell = {
            number: shlex.join(
                node_command(
                    self._hosts,
                    ["megadeberta.launcher.hosts.node_signal", self._job, number.name],
                    environ=self._environ,
                )
            )
            for number in (signal.SIGTERM, signal.SIGKILL)
        }
        then = f"{tell[signal.SIGTERM]}; sleep {_GUARD_SECONDS}; {tell[signal.SIGKILL]}"
        return subprocess.Popen(
            ["sh", "-c", f"read -r _; kill -9 -{leader}; {then}"],
            env=self._environ,
            stdin=subprocess.PIPE,  # whose other end, which nobody else has, closes when this process ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _kill_what_is_left(self) -> list[str]:
        """Hosts on which ranks outlived DeepSpeed's launcher; they are killed."""
        lost = {end.host for end in self._exits if end.lost} | self._unreachable
        reachable = [host for host in self._hosts if host not in lost]
        if not reachable:
            return []
        words = ["megadeberta.launcher.hosts.node_signal", self._job, signal.SIGKILL.name]
        answers = ask_nodes(reachable, words, environ=self._environ)
        return [host for host, answer in answers.items() if re.search(r'"ranks": \[\d', answer.output)]


def _start(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A session of its own: the terminal's Ctrl-C does not reach pdsh, which would leave without its ranks.
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _say(line: str) -> None:
    write_line(2, f"{line}\n".encode())


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
