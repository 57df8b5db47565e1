"""A run that is broken at random for half an hour and must end as if nothing had happened.

    python benchmarks/soak.py                         # 30 minutes, a fault every 30 to 60 s
    python benchmarks/soak.py --minutes 5 --steps 1000 --seed 3

Two ranks on this machine under `megadeberta launch`, which alone starts them again; a rank is killed, stopped, put to
sleep, made to hold its interpreter, to raise or to leave; now and then the launcher itself gets SIGTERM and the same
command is given again, as a scheduler would. Printed: every fault with its recovery, the fraction recovered without a
person, ETTR (seconds of an undisturbed run by those of this one), MTTR (mean seconds from a fault to the next new
step), and whether the losses of all steps equal those of an undisturbed run bit for bit.
"""

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.e2e.tiny_run import losses  # noqa: E402
from tests.faults.bench import Bench, FaultRun  # noqa: E402

KINDS = ("kill", "kill", "stop", "sleep", "gil", "raise", "exit0", "term")
SHORTEST, LONGEST = 30.0, 60.0
LIMIT_SECONDS = 120.0
"""A fault after which no new step comes for so long is not recovered from."""


@dataclass(frozen=True)
class Fault:
    """One fault and what became of it."""

    kind: str
    rank: int
    at_step: int
    seconds: float | None
    """Until the run was further than before the fault; None: never."""


def break_run(run: FaultRun, kind: str, rank: int) -> None:
    """Do it."""
    if kind == "term":
        run.process.send_signal(signal.SIGTERM)
        run.wait(60)
        run.begin()
    elif kind in ("kill", "stop"):
        run.ranks()[rank].send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    else:
        run.break_rank(rank, kind)


def soak(run: FaultRun, *, seconds: float, rng: random.Random, console: Console) -> list[Fault]:
    """Break the run again and again, each time after it has recovered."""
    faults: list[Fault] = []
    end = time.monotonic() + seconds
    run.wait_for_step(3)
    while time.monotonic() < end:
        time.sleep(rng.uniform(SHORTEST, LONGEST))
        if run.process.poll() is not None:
            break
        kind, rank, step = rng.choice(KINDS), rng.randrange(2), run.step
        started = time.monotonic()
        seen = len(run.lines)
        break_run(run, kind, rank)
        try:
            if kind != "term":  # a stopped rank that is continued for its stack may do a step before it is ended
                run.wait_for_line("starting again", seconds=LIMIT_SECONDS, after=seen)
            reached = max(step, run.step)
            run.wait_until(lambda reached=reached: run.step > reached, "a new step", seconds=LIMIT_SECONDS)
            faults.append(Fault(kind, rank, step, time.monotonic() - started))
        except RuntimeError as error:
            faults.append(Fault(kind, rank, step, None))
            console.print(f"[red]not recovered[/]: {error}")
            break
        console.print(f"{kind} of rank {rank} at step {step}: further after {faults[-1].seconds:.1f} s")
    return faults


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="of faults; finishing the run comes on top")] = 30.0,
    seed: Annotated[int, typer.Option(help="of instants and kinds")] = 1,
    steps: Annotated[int, typer.Option(help="of the run; it ends with them, faults or not")] = 6000,
    output: Annotated[Path | None, typer.Option(help="JSON with all figures")] = None,
) -> None:
    """Print the table of faults and the figures. Exit code 1 below 95 % recovered or with another loss."""
    console, rng = Console(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        bench = Bench(Path(folder))
        changes: dict[str, object] = {"training__steps": steps, "checkpoint__interval": 25}
        run = bench.start("soak", **changes)
        started = time.monotonic()
        try:
            faults = soak(run, seconds=60 * minutes, rng=rng, console=console)
            code = run.wait(60 * minutes + 600)
        finally:
            run.end()
        total = time.monotonic() - started
        found = losses(run.output)
        undisturbed_at = time.monotonic()
        equal = found == bench.undisturbed(**changes)
        undisturbed = time.monotonic() - undisturbed_at
    recovered = [fault.seconds for fault in faults if fault.seconds is not None]
    figures = {
        "faults": len(faults),
        "recovered": len(recovered) / max(1, len(faults)),
        "mttr_seconds": statistics.mean(recovered) if recovered else None,
        "slowest_seconds": max(recovered, default=None),
        "ettr": min(1.0, undisturbed / total),
        "steps": len(found),
        "exit_code": code,
        "bit_equal": equal,
        "seconds": total,
    }
    show(console, faults, figures)
    if output is not None:
        output.write_text(json.dumps({**figures, "each": [fault.__dict__ for fault in faults]}, indent=1))
    raise typer.Exit(not (figures["recovered"] >= 0.95 and equal and code == 0))


def show(console: Console, faults: list[Fault], figures: dict[str, object]) -> None:
    """Faults by kind, and the figures."""
    table = Table("fault", "number", "recovered", "mean s", "slowest s", title="soak", title_justify="left")
    for kind in dict.fromkeys(KINDS):
        of_kind = [fault for fault in faults if fault.kind == kind]
        done = [fault.seconds for fault in of_kind if fault.seconds is not None]
        times = (f"{statistics.mean(done):.1f}", f"{max(done):.1f}") if done else ("-", "-")
        table.add_row(kind, str(len(of_kind)), str(len(done)), *times)
    console.print(table)
    for name, value in figures.items():
        console.print(f"{name:16} {value:.3f}" if isinstance(value, float) else f"{name:16} {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
