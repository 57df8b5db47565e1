"""Train across two "machines" made of namespaces on this one, through pdsh and DeepSpeed's launcher, and compare.

    sudo python tests/e2e/two_nodes.py
    sudo python tests/e2e/two_nodes.py --case pdsh --set parallel.tensor=2
    sudo python tests/e2e/two_nodes.py --case power-off --keep

| file | holds |
|---|---|
| two_nodes.py | the cases, each a function that says whether it held, and the command that runs them |
| two_nodes_bench.py | what a case uses: recipes, every launcher's command on a node, the losses of a run |
| two_nodes_cluster.py | nodeA, nodeB, a spare nodeC and the switch between them: namespaces, sshd, power and cable |
| test_two_nodes.py | the command as a test of the campaign, and that nothing of it is left however it ends |

They are scripts beside one another and import nothing of tests/, so that `sudo python` of any folder runs them.
docs/two-nodes.md explains what is built and what a real cluster needs.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from two_nodes_bench import NODES, PATIENT_SECONDS, Bench, Losses, Overrides, Run, losses
from two_nodes_cluster import Cluster, missing_requirements

from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USAGE, MegadebertaError

EXIT_CANNOT_RUN = 2
TIMEOUT_SECONDS = 30
"""parallel.timeout_seconds of the runs that lose a node: also how long their ranks may take to meet on busy cores."""
LONG_STEPS = 200
INTERRUPTED_AFTER = 20
"""A run is interrupted early: its steps take 60 ms, and a signal takes seconds to go through ssh to every node."""
# DeepSpeed's launcher polls its ranks every second; pdsh, ssh and Python's end take the rest.
_END_SECONDS = 15
_UNPLUGGED_SECONDS = 50
_ROUNDING = 1e-5
_ORPHANS_SECONDS = 30


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


def comes_back(bench: Bench) -> Outcome:
    """nodeB loses its network for 50 s: the run starts again by itself when the cable is back."""
    recipe = bench.recipe("comes-back", steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    run = bench.launch(recipe, "--hostfile", "hosts")
    _wait_for_step(bench, recipe, run)
    bench.cluster.unplug(NODES[1])
    time.sleep(_UNPLUGGED_SECONDS)
    bench.cluster.plug_in(NODES[1])
    plugged = time.monotonic()
    code = run.wait(PATIENT_SECONDS)
    if code != 0 or "restart 1 of at most" not in run.text():
        return Outcome(False, f"exit code {code}:\n{run.tail()}")
    outcome = compare(losses(bench.output(recipe)), bench.one_node(LONG_STEPS), tolerance=bench.tolerance)
    return Outcome(outcome.held, f"done {time.monotonic() - plugged:.0f} s after the cable was back; {outcome.found}")


def spare(bench: Bench) -> Outcome:
    """nodeB loses its power for good: the run goes on with nodeC in its place, by itself."""
    (bench.folder / "hosts-spare").write_text(
        f"{(bench.folder / 'hosts').read_text()}nodeC slots={bench.ranks_per_node}\n"
    )
    return _goes_on_without(
        bench, "spare", "--hostfile", "hosts-spare", "--spare-hosts", "1", said="nodeC in the place of"
    )


def fewer(bench: Bench) -> Outcome:
    """nodeB loses its power for good: after a minute the run goes on with nodeA alone, where that was allowed."""
    return _goes_on_without(bench, "fewer", "--hostfile", "hosts", "--fewest-hosts", "1", said="with 1 of 2 machines")


def launcher_killed(bench: Bench) -> Outcome:
    """kill -9 of the launcher: the ranks of both nodes save and end; the same command resumes."""
    recipe = bench.recipe("launcher-killed", steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    run = bench.launch(recipe, "--hostfile", "hosts")
    _wait_for_step(bench, recipe, run)
    ranks = bench.ranks()
    run.signal(signal.SIGKILL)
    gone = _wait_until_gone(ranks, _ORPHANS_SECONDS)
    code = run.wait(_ORPHANS_SECONDS)
    if gone is None or code == 0 or len(ranks) != len(NODES) * bench.ranks_per_node:
        return Outcome(False, f"{len(ranks)} ranks, all gone after {gone} s; exit code {code}:\n{run.tail()}")
    return _resumed(bench, recipe, f"all ranks ended within {gone:.0f} s")


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
    "comes-back": comes_back,
    "spare": spare,
    "fewer": fewer,
    "launcher-killed": launcher_killed,
    "stopped": stopped,
    "not-shared": not_shared,
}


def _compared(bench: Bench, recipe: Path, runs: list[Run]) -> Outcome:
    for run in runs:
        if (code := run.wait(PATIENT_SECONDS)) != 0:
            return Outcome(False, f"exit code {code}:\n{run.tail()}")
    return compare(losses(bench.output(recipe)), bench.one_node(bench.steps), tolerance=bench.tolerance)


def _lose_node(bench: Bench, recipe: Path, *, lose: Callable[[], None], mend: Callable[[], None]) -> Outcome:
    run = bench.launch(recipe, "--hostfile", "hosts", "--restarts", "0")
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


def _goes_on_without(bench: Bench, name: str, *words: str, said: str) -> Outcome:
    """nodeB is off while the run goes on to its end. Sums over another number of ranks differ by rounding."""
    recipe = bench.recipe(name, steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    run = bench.launch(recipe, *words)
    _wait_for_step(bench, recipe, run)
    bench.cluster.power_off(NODES[1])
    lost, before = time.monotonic(), max(losses(bench.output(recipe)))
    while run.wait(0.05) is None and (said not in run.text() or max(losses(bench.output(recipe))) <= before):
        if time.monotonic() - lost > PATIENT_SECONDS:
            break
    seconds = time.monotonic() - lost
    code = run.wait(PATIENT_SECONDS)
    bench.cluster.power_on(NODES[1])
    if code != 0 or said not in run.text():
        return Outcome(False, f"exit code {code}:\n{run.tail()}")
    tolerance = max(bench.tolerance, _ROUNDING if name == "fewer" else 0.0)
    outcome = compare(losses(bench.output(recipe)), bench.one_node(LONG_STEPS), tolerance=tolerance)
    return Outcome(outcome.held, f"training again {seconds:.0f} s after the power was gone; {outcome.found}")


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


def main(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="its model, objective and deepspeed block instead of the tiny ones"),
    ] = None,
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override in all runs, e.g. parallel.tensor=2"),
    ] = None,
    reference_set: Annotated[
        list[str] | None,
        typer.Option(metavar="SECTION.KEY=VALUE", help="override in the run on one node only, e.g. parallel.tensor=1"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="largest relative difference of a loss or gradient norm; 0: equal bit for bit")
    ] = 0.0,
    case: Annotated[list[str] | None, typer.Option(help=f"only this one; may be repeated: {', '.join(CASES)}")] = None,
    ranks_per_node: Annotated[int, typer.Option(min=1, max=8, help="ranks on each node, 'slots' of the hostfile")] = 1,
    steps: Annotated[int, typer.Option(min=2, help="training steps of the runs that are compared")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="keep the folder with logs, checkpoints and metrics")] = False,
) -> None:
    """Rehearse training on two machines on this one: same losses as on one machine, and what happens when one dies.

    Two nodes are made of network, pid, mount, uts and ipc namespaces, each with its own sshd, host name, address and
    /dev/shm; they share one temporary folder, as machines of a cluster do. `megadeberta launch --hostfile` and
    `deepspeed --hostfile` then run unchanged. Needs root on Linux, pdsh, an ssh client and server; everything it
    starts is gone when it ends, also after Ctrl-C, and nothing outside the folder and the namespaces is touched.

    Takes some minutes on two cores. Exit code 0: every case held; 1: one did not; 2: this machine cannot run it.

    Examples:

        sudo .venv/bin/python tests/e2e/two_nodes.py

        sudo .venv/bin/python tests/e2e/two_nodes.py --case pdsh --case deepspeed --ranks-per-node 2

        sudo .venv/bin/python tests/e2e/two_nodes.py --case pdsh --set parallel.tensor=2

        sudo .venv/bin/python tests/e2e/two_nodes.py --set parallel.tensor=2 --reference-set parallel.tensor=1
        --tolerance 1e-5
    """
    console = Console()
    errors = Console(stderr=True)
    if unknown := sorted(set(case or ()) - set(CASES)):
        errors.print(f"error: --case {unknown[0]} does not exist; choose from {', '.join(CASES)}", style="red")
        raise typer.Exit(EXIT_CANNOT_RUN)
    if missing := missing_requirements():
        for problem in missing:
            errors.print(f"error: two nodes need {escape(problem)}", soft_wrap=True)
        raise typer.Exit(EXIT_CANNOT_RUN)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="two-nodes-"))
    outcomes: list[tuple[str, Outcome, float]] = []
    try:
        with console.status("preparing a corpus of 350 kB") as status:
            overrides = Overrides(tuple(set_ or ()), reference_only=tuple(reference_set or ()))
            bench = Bench(folder, recipe=recipe, overrides=overrides, ranks_per_node=ranks_per_node, steps=steps)
            bench.tolerance = tolerance
            status.update("starting the nodes")
            with Cluster(folder) as bench.cluster:
                for name in case or CASES:
                    status.update(f"{name}: {CASES[name].__doc__.splitlines()[0]}")
                    outcomes.append((name, *_timed(CASES[name], bench)))
                    console.print(f"{name}: {_verdict(outcomes[-1][1])}")
    except KeyboardInterrupt:
        errors.print("interrupted; the nodes are gone")
        raise typer.Exit(130) from None
    except MegadebertaError as error:
        errors.print(f"error: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_CANNOT_RUN) from None
    finally:
        if keep:
            console.print(f"kept: {folder}", soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(_table(outcomes, ranks_per_node))
    raise typer.Exit(0 if all(outcome.held for _, outcome, _ in outcomes) else 1)


def _timed(case: Callable[[Bench], Outcome], bench: Bench) -> tuple[Outcome, float]:
    started = time.monotonic()
    try:
        outcome = case(bench)
    except (RuntimeError, OSError) as error:
        outcome = Outcome(False, str(error))
    return outcome, time.monotonic() - started


def _table(outcomes: list[tuple[str, Outcome, float]], ranks_per_node: int) -> Table:
    table = Table(title=f"two nodes x {ranks_per_node} rank(s)", title_justify="left")
    for column in ("case", "verdict", "what was found", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for name, outcome, seconds in outcomes:
        table.add_row(name, _verdict(outcome), escape(outcome.found), f"{seconds:.0f}")
    return table


def _verdict(outcome: Outcome) -> str:
    return "[green]holds[/]" if outcome.held else "[red]FAILS[/]"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(typer.run(main))
