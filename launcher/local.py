"""Start N ranks of one command on this machine, pass signals on, and leave no process behind.

The bars this keeps: all ranks hear a signal within 0.2 s of each other; one rank's death ends the others within 5 s; a
launcher killed by SIGKILL takes its ranks with it; the exit code is 0 only if every rank's was.
"""

import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from megadeberta.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from megadeberta.launcher.memory_limit import MemoryLimit
from megadeberta.launcher.relay import Relay, write_line
from megadeberta.launcher.signals import SignalInbox, listening
from megadeberta.launcher.verdict import RankExit, Verdict, judge
from megadeberta.launcher.watch import Supervised, Watch
from megadeberta.rank.environment import STARTED_BY_VARIABLE
from megadeberta.rank.heartbeat import HEARTBEAT_VARIABLE, STACKS_SIGNAL
from megadeberta.rank.ports import LOOPBACK, check_port_free, pick_free_port

_STDOUT, _STDERR = 1, 2
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
# After the first failure the others may report their own error, then are asked to end, then made to.
_NOTICE_SECONDS = 1.0
_TERM_SECONDS = 2.0
# Ranks that leave on SIGTERM have written one checkpoint together; the slowest may still tidy up.
_PREEMPTED_SECONDS = 60.0


def launch_local(
    command: Sequence[str],
    *,
    ranks: int,
    environ: Mapping[str, str],
    master_port: int | None = None,
    inbox: SignalInbox | None = None,
    run: Supervised | None = None,
) -> Verdict:
    """Run ``ranks`` processes of ``command`` and wait for them; call it from the main thread.

    Args:
        command: without rank-specific words; a rank learns its place from RANK, WORLD_SIZE and so on.
        master_port: rendezvous port; None picks a free one.
        inbox: signals to look at, listening already; None listens while the ranks run.
        run: what to watch the ranks for hangs with; None does without.

    Raises:
        ParallelError: ``master_port`` is taken.
    """
    if master_port is None:
        master_port = pick_free_port()
    else:
        check_port_free(master_port)
    with listening(inbox) as signals:
        if run is not None:
            environ = {**environ, HEARTBEAT_VARIABLE: "1"}
        environments = rank_environments(environ, ranks=ranks, master_port=master_port)
        return _LocalJob(signals, run, ranks).run(command, environments)


def rank_environments(environ: Mapping[str, str], *, ranks: int, master_port: int) -> list[dict[str, str]]:
    """The environment of each local rank. Threads are shared out unless OMP_NUM_THREADS is set already."""
    # LOCAL_SIZE equal to the world size switches on DeepSpeed's shared-memory collectives, which have no timeout.
    base = {key: value for key, value in environ.items() if key != "LOCAL_SIZE"}
    base.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    base.setdefault("PYTHONUNBUFFERED", "1")
    # When a rank dies, torch's C++ code warns of the lost connection with a page of stack frames in every other rank.
    base.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    base |= {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(master_port),
        STARTED_BY_VARIABLE: "megadeberta launch",
    }
    if os.isatty(_STDERR):  # the ranks' standard error is a pipe, but it ends on this terminal
        base.setdefault("FORCE_COLOR", "1")
        base.setdefault("COLUMNS", str(os.get_terminal_size(_STDERR).columns))
    return [base | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class _LocalJob:
    def __init__(self, inbox: SignalInbox, run: Supervised | None, ranks: int) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: list[tuple[int, int, int]] = []  # rank, pid, code in the order of ending
        self._ended_by_us: set[int] = set()
        self._inbox = inbox
        self._terminate_at = math.inf
        self._kill_at = math.inf
        self._relay = Relay()
        self._memory = MemoryLimit()
        self._watch: Watch | None = None
        if run is not None:
            self._watch = Watch(run, world_size=ranks, ask_stacks=self._ask_stacks, say=_say, name=self._name)
            self._relay.tap = self._watch.take

    def run(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> Verdict:
        try:
            for rank, environ in enumerate(environments):
                self._start(rank, command, environ)
            while self._running:
                self._relay.poll(_POLL_SECONDS)
                self._forward_signals()
                self._reap()
                self._enforce_deadlines()
                if (verdict := self._look_for_hangs()) is not None:
                    return verdict
        finally:
            self._kill_running()
            self._relay.close()
            if self._watch is not None:
                self._watch.close()
        if self._inbox.wants_kill:
            return Verdict(EXIT_INTERRUPTED, (self._inbox.describe_kill(),))
        errors, killed = self._relay.errors, self._memory.describe_kills()
        exits = [
            RankExit(rank, pid, code, tuple(errors.get(rank, ())), rank in self._ended_by_us, killed)
            for rank, pid, code in self._ended
        ]
        verdict = judge(exits, forwarded=self._inbox.forwarded)
        return verdict if self._watch is None else replace(verdict, trained=self._watch.trained)

    def _start(self, rank: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        libc, launcher = ctypes.CDLL(None), os.getpid()

        def die_with_launcher() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # it died before the line above
                os._exit(1)

        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A session of its own: the terminal's Ctrl-C reaches the launcher only, which passes it on once.
            start_new_session=True,
            preexec_fn=die_with_launcher,
        )
        self._running[rank] = process
        if process.stdout is not None:
            self._relay.add(rank, process.stdout, _STDOUT, hold_errors=False)
        assert process.stderr is not None
        self._relay.add(rank, process.stderr, _STDERR, hold_errors=True)

    def _forward_signals(self) -> None:
        while (signum := self._inbox.take()) is not None:
            if signum == signal.SIGKILL:
                self._kill_running()
            else:
                self._send(signum)

    def _send(self, signum: signal.Signals) -> None:
        for process in self._running.values():
            # Not process.send_signal, which reaps: a dead rank that _reap has not seen yet keeps its id until then.
            os.kill(process.pid, signum)

    def _look_for_hangs(self) -> Verdict | None:
        if self._watch is None or not self._running:
            return None
        ended = [rank for rank, _, _ in self._ended]
        stopped = [rank for rank, process in self._running.items() if _is_stopped(process.pid)]
        return self._watch.look(ended=ended, stopped=stopped, stopping=bool(self._inbox.forwarded))

    def _ask_stacks(self) -> None:
        self._send(STACKS_SIGNAL)
        self._send(signal.SIGCONT)  # a rank that is stopped can write too

    def _name(self, rank: int) -> str:
        return f"rank {rank} (pid {self._running[rank].pid})" if rank in self._running else f"rank {rank}"

    def _reap(self) -> None:
        for rank, process in list(self._running.items()):
            # Look without reaping: while the dead leader keeps its process id, its group cannot be anybody else's.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(process.pid)
            code = process.wait()
            del self._running[rank]
            self._ended.append((rank, process.pid, code))
            if code:
                patience = _PREEMPTED_SECONDS if code == EXIT_PREEMPTED else _NOTICE_SECONDS
                self._terminate_at = min(self._terminate_at, time.monotonic() + patience)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        if now >= self._terminate_at and self._kill_at == math.inf:
            self._kill_at = now + _TERM_SECONDS
            self._ended_by_us.update(self._running)
            self._send(signal.SIGTERM)
        if now >= self._kill_at:
            for process in self._running.values():
                _kill_group(process.pid)

    def _kill_running(self) -> None:
        for rank, process in list(self._running.items()):
            _kill_group(process.pid)
            code = process.wait()
            del self._running[rank]
            self._ended.append((rank, process.pid, code))


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _say(line: str) -> None:
    write_line(_STDERR, f"{line}\n".encode())


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
