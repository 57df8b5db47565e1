"""What `benchmarks/soak.py` breaks: a run of two ranks on this machine, or of two rehearsed machines."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
# The rehearsal's files are scripts that import one another by name.
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

from two_nodes_bench import NODES, Overrides  # noqa: E402
from two_nodes_bench import Bench as NodesBench  # noqa: E402
from two_nodes_cluster import Cluster, missing_requirements  # noqa: E402

from megadeberta.errors import EXIT_PREEMPTED  # noqa: E402
from tests.e2e.tiny_run import Losses, last_step, losses  # noqa: E402
from tests.faults.bench import Bench, FaultRun  # noqa: E402

STEPS, INTERVAL = 1_000_000, 25
"""Of every run: more steps than there is time for, and those between two checkpoints."""
OUTAGE_SECONDS = 40.0
"""How long a link or a machine is gone: longer than a rank may be silent and ssh may take to answer."""
_STOP_SECONDS = 120.0


class Soaked(Protocol):
    """A run that is broken again and again."""

    output: Path

    def break_it(self, kind: str, rank: int) -> float:
        """Do it; the instant from which its recovery counts: that of the fault, or of the end of an outage."""

    def has_ended(self) -> bool:
        """Whether the launcher is gone."""

    def text(self) -> str:
        """What it has printed."""

    def stop(self) -> None:
        """SIGTERM to the launcher, as a scheduler sends it.

        Raises:
            RuntimeError: it does not end with the exit code of a run that has saved.
        """


class Soakable(Protocol):
    """Starts runs of one recipe, each in a folder of its own."""

    kinds: tuple[str, ...]
    """Of faults; a kind may come twice, and is then twice as frequent."""
    without_restart: tuple[str, ...]
    """Those after which the launcher does not start the ranks again by itself, as it is ended too."""

    def start(self, name: str) -> Soaked: ...


class OneMachine:
    """Two ranks here: a rank is killed, stopped, put to sleep, made to hold its interpreter, to raise or to leave."""

    kinds = ("kill", "kill", "stop", "sleep", "gil", "raise", "exit0", "term")
    without_restart = ("term",)

    def __init__(self, folder: Path) -> None:
        self._bench = Bench(folder)
        self._runs: list[FaultRun] = []

    def start(self, name: str) -> "_OneMachineRun":
        self._runs.append(self._bench.start(name, training__steps=STEPS, checkpoint__interval=INTERVAL))
        return _OneMachineRun(self._runs[-1])

    def end(self) -> None:
        """Leave none of them running."""
        for run in self._runs:
            run.end()


class _OneMachineRun:
    def __init__(self, run: FaultRun) -> None:
        self._run = run
        self.output = run.output
        self.text = run.text
        self.stop = run.stop

    def has_ended(self) -> bool:
        return self._run.process.poll() is not None

    def break_it(self, kind: str, rank: int) -> float:
        now = time.monotonic()
        if kind == "term":
            self._run.stop()
            self._run.begin()
        elif kind in ("kill", "stop"):
            self._run.ranks()[rank].send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        else:
            self._run.break_rank(rank, kind)
        return now


class TwoMachines:
    """One rank on each of two rehearsed machines: a rank is killed or stopped, a link or a machine is gone for a
    while; the launcher is stopped and started again."""

    kinds = ("kill", "stop", "link", "machine", "term")
    without_restart = ("term",)

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        overrides = Overrides((f"checkpoint.interval={INTERVAL}",))
        self._bench = NodesBench(folder, recipe=None, overrides=overrides, ranks_per_node=1, steps=STEPS)
        self._bench.cluster = cluster

    def start(self, name: str) -> "_TwoMachinesRun":
        return _TwoMachinesRun(self._bench, name)


class _TwoMachinesRun:
    def __init__(self, bench: NodesBench, name: str) -> None:
        self._bench = bench
        self._recipe = bench.recipe(name, steps=STEPS)
        self.output = bench.output(self._recipe)
        self._before = ""
        self._begin()

    def _begin(self) -> None:
        self._run = self._bench.launch(self._recipe, "--hostfile", "hosts")

    def text(self) -> str:
        return self._before + self._run.text()

    def has_ended(self) -> bool:
        return self._run.process.poll() is not None

    def stop(self) -> None:
        self._run.signal(signal.SIGTERM)
        if (code := self._run.wait(_STOP_SECONDS)) != EXIT_PREEMPTED:
            raise RuntimeError(f"SIGTERM ended the run with {code}:\n{self._run.tail()}")

    def break_it(self, kind: str, rank: int) -> float:
        now, cluster = time.monotonic(), self._bench.cluster
        if kind == "term":
            self.stop()
            self._before = self.text()
            self._begin()
            return now
        if kind in ("kill", "stop"):
            (pid,) = self._bench.ranks(NODES[rank])
            os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            return now
        is_link = kind == "link"
        gone, back = (cluster.unplug, cluster.plug_in) if is_link else (cluster.power_off, cluster.power_on)
        gone(NODES[1])  # the launcher is on the other one
        time.sleep(OUTAGE_SECONDS)
        back(NODES[1])
        return time.monotonic()


@contextmanager
def soakable(folder: Path, *, machines: bool) -> Iterator[Soakable]:
    """What is soaked, up until the end of the block; ``machines``: two rehearsed ones."""
    if machines:
        with Cluster(folder) as cluster:
            yield TwoMachines(folder, cluster)
        return
    here = OneMachine(folder)
    try:
        yield here
    finally:
        here.end()


def what_machines_lack() -> list[str]:
    """Why two machines cannot be rehearsed here; empty if they can."""
    return missing_requirements()


def in_turn(kinds: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Kinds without an end, each as often as the others, in random order."""
    while True:
        yield from rng.sample(kinds, len(kinds))


def wait_until(run: Soaked, condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    """
    Raises:
        RuntimeError: the time is over, or the launcher has ended before.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or (run.has_ended() and not condition()):
            raise RuntimeError(f"{what} did not come within {seconds:.0f} s:\n{run.text()[-3000:]}")
        time.sleep(0.05)


def undisturbed(soaked: Soakable, step: int, *, seconds: float) -> tuple[Losses, float]:
    """The losses up to ``step`` of a run to which nothing happens but that it is told to end there; its seconds."""
    started = time.monotonic()
    run = soaked.start("undisturbed")
    wait_until(run, lambda: last_step(run.output) >= step, f"step {step}", seconds=seconds)
    took = time.monotonic() - started
    run.stop()
    return [row for row in losses(run.output) if row[0] <= step], took
