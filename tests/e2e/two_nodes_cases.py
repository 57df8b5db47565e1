"""What is tried on the two nodes; each case is one function that says whether it held and what it found."""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from two_nodes_bench import NODES, PATIENT_SECONDS, Bench, Losses, Run, losses

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USAGE

TIMEOUT_SECONDS = 30
"""parallel.timeout_seconds of the runs that lose a node: also how long their ranks may take to meet on busy cores."""
LONG_STEPS = 200
INTERRUPTED_AFTER = 20
"""A run is interrupted early: its steps take 60 ms, and a signal takes seconds to go through ssh to every node."""
# DeepSpeed's launcher polls its ranks every second; pdsh, ssh and Python's end take the rest.
_END_SECONDS = 15


@dataclass(frozen=True)
class Outcome:
    """Verdict of one case, and the numbers behind it in words."""

    held: bool
    found: str


def compare(found: Losses, expected: Losses, *, tolerance: float = 0.0) -> Outcome:
    """Equal bit for bit, or the largest relative difference."""
    steps = len(found)
    if found == expected:
        return Outcome(True, f"losses and gradient norms of {steps} steps equal those of one node, bit for bit")
    if found.keys() != expected.keys():
        return Outcome(False, f"{steps} steps were logged and {len(expected)} on one node")
    pairs = [
        (float.fromhex(mine), float.fromhex(other))
        for step in expected
        for mine, other in zip(found[step], expected[step], strict=True)
    ]
    worst = max(abs(mine - other) / abs(other) for mine, other in pairs)
    text = (
        f"losses and gradient norms of {steps} steps differ from those of one node by up to {worst:.1e} of their value"
    )
    return Outcome(worst <= tolerance, text)


def pdsh(bench: Bench) -> Outcome:
    """`megadeberta launch --hostfile`: same losses as on one node."""
    recipe = bench.recipe("pdsh", steps=bench.steps)
    return _compared(bench, recipe, [bench.launch(recipe, "--hostfile", "hosts")])


def deepspeed(bench: Bench) -> Outcome:
    """`deepspeed --hostfile`: same losses as on one node."""
    recipe = bench.recipe("deepspeed", steps=bench.steps)
    return _compared(bench, recipe, [bench.deepspeed(recipe)])


def torchrun(bench: Bench) -> Outcome:
    """torchrun on each node: same losses as on one node."""
    recipe = bench.recipe("torchrun", steps=bench.steps)
    return _compared(bench, recipe, bench.torchrun(recipe))


def mpiexec(bench: Bench) -> Outcome:
    """mpiexec over both nodes: same losses as on one node."""
    recipe = bench.recipe("mpiexec", steps=bench.steps)
    return _compared(bench, recipe, [bench.mpiexec(recipe)])


def power_off(bench: Bench) -> Outcome:
    """nodeB loses its power: exit code 80, no rank left; the same command resumes."""
    recipe = bench.recipe("power-off", steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    lose, mend = bench.cluster.power_off, bench.cluster.power_on
    return _lose_node(bench, recipe, lose=lambda: lose(NODES[1]), mend=lambda: mend(NODES[1]))


def unplugged(bench: Bench) -> Outcome:
    """nodeB loses its network: its own ranks end too; when the cable is back, the same command resumes."""
    recipe = bench.recipe("unplugged", steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    lose, mend = bench.cluster.unplug, bench.cluster.plug_in
    return _lose_node(bench, recipe, lose=lambda: lose(NODES[1]), mend=lambda: mend(NODES[1]))


def stopped(bench: Bench) -> Outcome:
    """SIGTERM to the launcher: both nodes save, exit code 75; the same command resumes."""
    recipe = bench.recipe("stopped", steps=LONG_STEPS)
    run = bench.launch(recipe, "--hostfile", "hosts")
    _wait_for_step(bench, recipe, run)
    run.signal(signal.SIGTERM)
    told = time.monotonic()
    code = run.wait(60)
    seconds = time.monotonic() - told
    if code != EXIT_PREEMPTED or bench.ranks():
        return Outcome(False, f"exit code {code}, {len(bench.ranks())} ranks left:\n{run.tail()}")
    return _resumed(bench, recipe, f"exit code 75 after {seconds:.0f} s")


def not_shared(bench: Bench) -> Outcome:
    """An output folder that each node has for itself: one clear line, exit code 2."""
    recipe = bench.recipe("not-shared", steps=bench.steps, output=bench.folder / "own" / "mount" / "run")
    run = bench.launch(recipe, "--hostfile", "hosts")
    code = run.wait(PATIENT_SECONDS)
    lines = [line for line in run.text().splitlines() if "is not shared" in line]
    return Outcome(code == EXIT_USAGE and bool(lines), lines[0] if lines else f"exit code {code}:\n{run.tail()}")


CASES: dict[str, Callable[[Bench], Outcome]] = {
    "pdsh": pdsh,
    "deepspeed": deepspeed,
    "torchrun": torchrun,
    "mpiexec": mpiexec,
    "power-off": power_off,
    "unplugged": unplugged,
    "stopped": stopped,
    "not-shared": not_shared,
}


def _compared(bench: Bench, recipe: Path, runs: list[Run]) -> Outcome:
    for run in runs:
        if (code := run.wait(PATIENT_SECONDS)) != 0:
            return Outcome(False, f"exit code {code}:\n{run.tail()}")
    return compare(losses(bench.output(recipe)), bench.one_node(bench.steps), tolerance=bench.tolerance)


def _lose_node(bench: Bench, recipe: Path, *, lose: Callable[[], None], mend: Callable[[], None]) -> Outcome:
    run = bench.launch(recipe, "--hostfile", "hosts")
    _wait_for_step(bench, recipe, run)
    ranks = bench.ranks()
    lose()
    lost = time.monotonic()
    limit = TIMEOUT_SECONDS + _END_SECONDS
    gone = _wait_until_gone(ranks, limit)
    code = run.wait(limit + 30 - (time.monotonic() - lost))
    ended = time.monotonic() - lost
    mend()
    if gone is None or code != EXIT_PEER_LOST or len(ranks) != len(NODES) * bench.ranks_per_node:
        return Outcome(False, f"{len(ranks)} ranks, all gone after {gone} s; exit code {code}:\n{run.tail()}")
    found = f"all ranks ended within {gone:.0f} s (timeout {TIMEOUT_SECONDS} s), exit code 80 after {ended:.0f} s"
    return _resumed(bench, recipe, found)


def _resumed(bench: Bench, recipe: Path, found: str) -> Outcome:
    """Run the command to its end; what was interrupted must not show in any loss."""
    before = max(losses(bench.output(recipe)))
    run = bench.launch(recipe, "--hostfile", "hosts")
    code = run.wait(PATIENT_SECONDS)
    if code != 0 or "resum" not in run.text():
        return Outcome(False, f"{found}; then exit code {code}:\n{run.tail()}")
    outcome = compare(losses(bench.output(recipe)), bench.one_node(LONG_STEPS), tolerance=bench.tolerance)
    return Outcome(outcome.held, f"{found}; interrupted at step {before}; {outcome.found}")


def _wait_for_step(bench: Bench, recipe: Path, run: Run) -> None:
    """Until some steps are done and checkpoints have been written."""
    metrics = bench.output(recipe) / "metrics.jsonl"
    deadline = time.monotonic() + PATIENT_SECONDS
    while not metrics.exists() or max(losses(metrics.parent), default=0) < INTERRUPTED_AFTER:
        if run.wait(0.05) is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run did not reach step {INTERRUPTED_AFTER}:\n{run.tail()}")


def _wait_until_gone(processes: Iterable[int], seconds: float) -> float | None:
    started = time.monotonic()
    left = list(processes)
    while left:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.1)
    return time.monotonic() - started
