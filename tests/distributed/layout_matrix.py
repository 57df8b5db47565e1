"""Every layout against the single process: `make test-layouts`, or a part of it.

    python -m tests.distributed.layout_matrix --variant v3 --tensor 2 --every 5

Ranks are forked from one warm server, and several layouts run at once: waiting for one another is most of what their
ranks do. Dropout is on. A cell passes when losses, gradient norms, a validation loss and every parameter after 20 steps
are within 1e-5 of one process.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.distributed.layouts import CLOSE, Layout, Trace, run_alone, run_layout

VARIANTS = ("v1", "v2-conv", "v3", "rtd-gdes")
MIN_BATCH, MICRO_BATCHES = 4, 2
"""Sequences of a step, and micro batches of a rank in it, that there are at least."""
_COLUMNS = ("layout", "loss", "norm", "validation", "parameters", "seconds", "")


def all_layouts() -> Iterator[Layout]:
    """{TP 1, 2, 4} x {PP 1, 2} x {DP 1, 2} x {ZeRO} x {micro batch 1, 2, 4} x {SP} x {AC}, for every variant."""
    for variant, tensor, pipeline, data, micro_batch in itertools.product(
        VARIANTS, (1, 2, 4), (1, 2), (1, 2), (1, 2, 4)
    ):
        # DeepSpeed 0.19.8 combines a pipeline with ZeRO 1 only.
        stages = (0, 1, 2, 3) if pipeline == 1 else (1,)
        for zero, sequence_parallel, recompute in itertools.product(stages, (False, True), (False, True)):
            if tensor > 1 or not sequence_parallel:
                batch = max(MIN_BATCH, MICRO_BATCHES * micro_batch * data)
                yield Layout(
                    variant, tensor, data, pipeline, zero, micro_batch, sequence_parallel, recompute, batch=batch
                )


def differences(found: Trace, expected: Trace) -> tuple[float, float, float, float]:
    """Largest of the losses, of the norms, of the validation and of the parameters."""
    return (
        max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)),
        max(abs(a - b) for a, b in zip(found.norms, expected.norms, strict=True)),
        max(abs(found.held_out[name] - value) for name, value in expected.held_out.items()),
        max(float((found.parameters[name] - whole).abs().max()) for name, whole in expected.parameters.items()),
    )


def _row(layout: Layout) -> tuple[bool, list[str]]:
    started = time.monotonic()
    try:
        apart = differences(run_layout(layout), run_alone(layout.variant, layout.batch))
    except Exception as error:
        return False, [str(layout), "", "", "", "", "", f"{type(error).__name__}: {error}".splitlines()[0][:60]]
    passed = max(apart) < CLOSE
    seconds = f"{time.monotonic() - started:.0f}"
    return passed, [str(layout), *(f"{value:.1e}" for value in apart), seconds, "" if passed else "too far apart"]


def main() -> int:
    """Run the chosen cells, print their table, and say how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="only this one; may be repeated")
    parser.add_argument("--tensor", type=int, help="only this degree")
    parser.add_argument("--pipeline", type=int, help="only this degree")
    parser.add_argument("--every", type=int, default=1, help="each n-th cell: a sample of the matrix")
    parser.add_argument(
        "--first", type=int, default=0, help="where to start: with --every n, 0 .. n-1 cover everything"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="layouts at once; as many as cores")
    args = parser.parse_args()
    chosen = [
        layout
        for layout in all_layouts()
        if (not args.variant or layout.variant in args.variant)
        and args.tensor in (None, layout.tensor)
        and args.pipeline in (None, layout.pipeline)
    ][args.first :: args.every]
    table, failed = Table(*_COLUMNS, title=f"{len(chosen)} layouts against one process"), 0
    table.columns[0].no_wrap = True
    console = Console()
    for variant, batch in sorted({(layout.variant, layout.batch) for layout in chosen}):
        run_alone(variant, batch)
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = pool.map(_row, chosen)
        for passed, row in track(rows, description="layouts", total=len(chosen), console=console):
            failed += not passed
            table.add_row(*row, style=None if passed else "bold red")
            console.print(" ".join(row), highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{len(chosen) - failed} of {len(chosen)} within {CLOSE:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
