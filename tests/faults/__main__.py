"""The fault campaign: every bar on its row, what was seen beside it. Resumes where it was stopped.

    python -m tests.faults                  # all, about two hours on two cores
    python -m tests.faults R1 R2            # some
    python -m tests.faults --list           # what there is

Results are kept in ``.faults/results.json`` by commit: a second start runs what is missing or was not met.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.faults.bars import BARS, Bar
from tests.faults.bench import ROOT, Bench
from tests.faults.recovery import Found

MET, NOT_MET, CANNOT = "met", "NOT MET", "not here"


def run_bar(bar: Bar, bench: Bench) -> Found:
    """One row."""
    if bar.case is not None:
        try:
            return bar.case(bench)
        except (RuntimeError, OSError, IndexError) as error:
            return Found(False, str(error).splitlines()[0][:150])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *bar.options, *bar.tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return Found(done.returncode == 0, lines[-1][:150] if lines else done.stderr[-150:])


def run_bars(bars: Sequence[Bar], bench: Bench, results: Path, *, commit: str, console: Console) -> dict[str, dict]:
    """Rows by id; those that are kept and met for this commit are not run again."""
    kept = json.loads(results.read_text()) if results.exists() else {}
    rows = {key: row for key, row in kept.items() if row["commit"] == commit}
    for bar in bars:
        if rows.get(bar.id, {}).get("verdict") == MET:
            continue
        console.print(f"{bar.id}: {escape(bar.says)} ...")
        started = time.monotonic()
        found = run_bar(bar, bench)
        verdict = CANNOT if found.met is None else MET if found.met else NOT_MET
        seconds = round(time.monotonic() - started)
        rows[bar.id] = {"commit": commit, "verdict": verdict, "found": found.text, "seconds": seconds}
        results.write_text(json.dumps(rows, indent=1))
        console.print(f"  {verdict}: {escape(found.text)} ({seconds} s)")
    return {bar.id: rows[bar.id] for bar in bars}


def table(bars: Sequence[Bar], rows: dict[str, dict]) -> Table:
    """What is printed in the end."""
    shown = Table(title="bars of reliability", title_justify="left")
    for column in ("bar", "says", "verdict", "seen", "s"):
        shown.add_column(column, overflow="fold", justify="right" if column == "s" else "left")
    for bar in bars:
        row = rows[bar.id]
        shown.add_row(bar.id, escape(bar.says), row["verdict"], escape(row["found"]), str(row["seconds"]))
    return shown


def main(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[BAR]...", help="only these")] = None,
    folder: Annotated[Path, typer.Option(help="of the runs and results")] = ROOT / ".faults",
    fresh: Annotated[bool, typer.Option("--fresh", help="forget earlier results")] = False,
    show: Annotated[bool, typer.Option("--list", help="show the bars and exit")] = False,
) -> None:
    """Run the fault campaign and print the table of bars. Exit code 1 if one is not met."""
    console = Console()
    unknown = set(ids or ()) - {bar.id for bar in BARS}
    if unknown:
        console.print(f"error: there is no bar {', '.join(sorted(unknown))}; --list shows them", style="red")
        raise typer.Exit(2)
    bars = [bar for bar in BARS if not ids or bar.id in ids]
    if show:
        for bar in bars:
            console.print(f"{bar.id:4} {escape(bar.says)}")
        return
    bench = Bench(folder)
    results = folder / "results.json"
    if fresh:
        results.unlink(missing_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = run_bars(bars, bench, results, commit=commit, console=console)
    console.print(table(bars, rows))
    raise typer.Exit(any(row["verdict"] == NOT_MET for row in rows.values()))


if __name__ == "__main__":
    typer.run(main)
