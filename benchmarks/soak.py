"""A run that is broken at random for half an hour and must end as if nothing had happened.

    python benchmarks/soak.py                            # 30 minutes, a fault every 30 to 60 s
    sudo python benchmarks/soak.py --machines --minutes 10   # the two ranks on two rehearsed machines
    python benchmarks/soak.py --minutes 5 --seed 3

Two ranks under `megadeberta launch`, which alone starts them again. Here, a rank is killed, stopped, put to sleep, made
to hold its interpreter, to raise or to leave. On two machines (network namespaces; needs what tests/e2e/two_nodes.py
needs) a rank is killed or stopped, the link or one machine is gone for 40 s. Now and then the launcher itself gets
SIGTERM and the same command is given again, as a scheduler would.

Printed: every fault with its recovery, the fraction recovered without a person, ETTR (seconds of an undisturbed run by
those of this one), MTTR (mean seconds from a fault, or from the end of an outage, to the next new step), and whether
the losses of all steps equal those of an undisturbed run bit for bit.
"""

import json
import os
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from soak_runs import (
    Soakable,
    Soaked,
    in_turn,
    last_step,
    losses,
    soakable,
    undisturbed,
    wait_until,
    what_machines_lack,
)

SHORTEST, LONGEST = 30.0, 60.0
LIMIT_SECONDS = 180.0
"""A fault after which no new step comes for so long is not recovered from."""
START_SECONDS, AGAIN_SECONDS = 300.0, 3600.0
"""Most for the first steps, and for the undisturbed run."""


@dataclass(frozen=True)
class Fault:
    """One fault and what became of it."""

    kind: str
    rank: int
    at_step: int
    seconds: float | None
    """Until the run was further than before the fault; None: never."""


def break_once(run: Soaked, kind: str, rank: int, *, restarts: bool) -> Fault:
    """Break the run and wait until it is further than before; ``restarts``: its launcher starts it again."""
    step, seen = last_step(run.output), run.text().count("starting again")
    started = run.break_it(kind, rank)
    try:
        if restarts:  # a stopped rank that is continued for its stack may do a step before it is ended
            wait_until(
                run, lambda: run.text().count("starting again") > seen, f"a start after {kind}", seconds=LIMIT_SECONDS
            )
        reached = max(step, last_step(run.output))
        wait_until(run, lambda: last_step(run.output) > reached, f"a step after {kind}", seconds=LIMIT_SECONDS)
    except RuntimeError as error:
        print(f"not recovered: {error}")
        return Fault(kind, rank, step, None)
    fault = Fault(kind, rank, step, max(0.0, time.monotonic() - started))
    print(f"{kind} of rank {rank} at step {step}: further after {fault.seconds:.1f} s", flush=True)
    return fault


def soak(run: Soaked, soaked: Soakable, *, seconds: float, rng: random.Random) -> list[Fault]:
    """Break the run again and again, each time after it has recovered."""
    faults: list[Fault] = []
    wait_until(run, lambda: last_step(run.output) >= 3, "step 3", seconds=START_SECONDS)
    end = time.monotonic() + seconds
    for kind in in_turn(soaked.kinds, rng):
        time.sleep(rng.uniform(SHORTEST, LONGEST))
        if time.monotonic() > end:
            break
        restarts = kind not in soaked.without_restart
        faults.append(break_once(run, kind, rng.randrange(2), restarts=restarts))
        if faults[-1].seconds is None:
            break
    return faults


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="of faults; the undisturbed run comes on top")] = 30.0,
    seed: Annotated[int, typer.Option(help="of instants and kinds")] = 1,
    machines: Annotated[bool, typer.Option("--machines", help="two rehearsed machines instead of this one")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON with all figures")] = None,
) -> None:
    """Print the table of faults and the figures. Exit code 1 below 95 % recovered or with another loss; 2: two
    machines cannot be rehearsed here."""
    if machines and (lacking := what_machines_lack()):
        for problem in lacking:
            print(f"error: two machines need {problem}")
        raise typer.Exit(2)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        with soakable(folder, machines=machines) as soaked:
            faults, figures = measure(soaked, seconds=60 * minutes, rng=random.Random(seed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(Console(), dict.fromkeys(soaked.kinds), faults, figures)
    if output is not None:
        output.write_text(json.dumps({**figures, "each": [asdict(fault) for fault in faults]}, indent=1))
    raise typer.Exit(not (figures["recovered"] >= 0.95 and figures["bit_equal"]))


def measure(soaked: Soakable, *, seconds: float, rng: random.Random) -> tuple[list[Fault], dict[str, float | None]]:
    """The faults of one run, and what it came to beside an undisturbed one."""
    started = time.monotonic()
    run = soaked.start("soak")
    faults = soak(run, soaked, seconds=seconds, rng=rng)
    total = time.monotonic() - started
    if not run.has_ended():
        run.stop()
    found = losses(run.output)
    expected, without_faults = undisturbed(soaked, found[-1][0], seconds=AGAIN_SECONDS)
    recovered = [fault.seconds for fault in faults if fault.seconds is not None]
    return faults, {
        "faults": len(faults),
        "recovered": len(recovered) / max(1, len(faults)),
        "mttr_seconds": statistics.mean(recovered) if recovered else None,
        "slowest_seconds": max(recovered, default=None),
        "ettr": min(1.0, without_faults / total),
        "steps": len(found),
        "bit_equal": found == expected,
        "seconds": total,
        "undisturbed_seconds": without_faults,
    }


def show(console: Console, kinds: dict[str, None], faults: list[Fault], figures: dict[str, float | None]) -> None:
    """Faults by kind, and the figures."""
    table = Table("fault", "number", "recovered", "mean s", "slowest s", title="soak", title_justify="left")
    for kind in kinds:
        of_kind = [fault for fault in faults if fault.kind == kind]
        done = [fault.seconds for fault in of_kind if fault.seconds is not None]
        times = (f"{statistics.mean(done):.1f}", f"{max(done):.1f}") if done else ("-", "-")
        table.add_row(kind, str(len(of_kind)), str(len(done)), *times)
    console.print(table)
    for name, value in figures.items():
        console.print(f"{name:19} {value:.3f}" if isinstance(value, float) else f"{name:19} {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
