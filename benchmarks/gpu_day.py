"""The whole GPU day in one command, in less than nine minutes: `make gpu`.

    python benchmarks/gpu_day.py [--minutes 8.5] [--output FOLDER] [--only TEXT ...]
    python benchmarks/gpu_day.py --toy          # every line of it on a CPU, in about two minutes
    python benchmarks/gpu_day.py --list         # what would be measured, the most valuable first

Op, kernels, layer, bytes kept and training steps through the engine, ours against every peer that is installed; what
cannot run is skipped by name. FOLDER gets results.jsonl, one line for each measurement as it is made, note.md, which
compares with the goals and is written anew after each, chart.png at the end, and worker.log.
"""

import argparse
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a machine for this need not have the package installed

from gpu.chart import draw_chart
from gpu.note import write_note
from gpu.plan import Planner, choose
from gpu.results import FAILED, MEASURED, SKIPPED, Results
from gpu.runner import Day

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS_FOR_THE_CHART = 10


def main() -> int:
    arguments = parse_arguments()
    if arguments.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # before the backends say where they run
    plan = choose(Planner(arguments.toy).plan(), arguments.only)
    if arguments.list or not plan:
        print("\n".join(entry.name for entry in plan) or f"no name has {' or '.join(arguments.only)} in it; see --list")
        return 0 if plan else 2
    started, clock = datetime.now(), time.monotonic()
    folder = arguments.output or RESULTS / started.strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    results = Results.create(folder)

    def write() -> None:
        write_note(folder / "note.md", results, started=started, seconds=time.monotonic() - clock, toy=arguments.toy)

    seconds = 60 * arguments.minutes - SECONDS_FOR_THE_CHART
    with (folder / "worker.log").open("w", encoding="utf-8") as log:
        try:
            Day(results, log, seconds=seconds, after_each=write).run(plan)
        finally:
            print(draw_chart(folder / "chart.png", results))
            counts = ", ".join(f"{len(results.with_status(s))} {s}" for s in (MEASURED, FAILED, SKIPPED))
            print(f"{counts} in {time.monotonic() - clock:.0f} s; the note is {folder / 'note.md'}")
    return 0


def stop(number: int, _: FrameType | None) -> None:
    """Ends the day as if its time were up: the note says what was not reached."""
    signal.signal(number, signal.SIG_IGN)  # what is written now is wanted whole
    raise SystemExit(128 + number)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="of the whole day (default: 8.5)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/DATE")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="measurements with TEXT in their name")
    parser.add_argument("--toy", action="store_true", help="small models on a CPU under Triton's interpreter")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
