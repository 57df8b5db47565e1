"""Train across two "machines" made of namespaces on this one, through pdsh and DeepSpeed's launcher, and compare.

    sudo python tests/e2e/two_nodes.py
    sudo python tests/e2e/two_nodes.py --case pdsh --set parallel.tensor=2
    sudo python tests/e2e/two_nodes.py --case power-off --keep

docs/two-nodes.md explains what is built and what a real cluster needs.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from two_nodes_bench import Bench, Overrides
from two_nodes_cases import CASES, Outcome
from two_nodes_cluster import Cluster, missing_requirements

from megadeberta.errors import MegadebertaError

EXIT_CANNOT_RUN = 2


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
            status.update("starting nodeA and nodeB")
            with Cluster(folder) as bench.cluster:
                for name in case or CASES:
                    status.update(f"{name}: {CASES[name].__doc__.splitlines()[0]}")
                    outcomes.append((name, *_timed(CASES[name], bench)))
                    console.print(f"{name}: {_verdict(outcomes[-1][1])}")
    except KeyboardInterrupt:
        errors.print("interrupted; both nodes are gone")
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
