"""The Markdown note of a day: what was wanted and found, and where the time goes. Torch-free."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gpu.goals import verdicts
from gpu.results import FAILED, SKIPPED, Record, Results

KERNEL_COLUMNS = (
    "ms", "launches", "registers", "spilled_bytes", "shared_bytes", "warps", "stages", "blocks_per_multiprocessor",
    "occupancy",
)  # fmt: skip
OP_COLUMNS = ("forward_ms", "both_ms", "tflops", "peak_gib", "error")
STEP_COLUMNS = ("tokens", "step_ms", "tokens_per_s", "tflops", "mfu", "mfu_of_products", "peak_gib", "attention")
Row = Sequence[object]


def write_note(path: Path, results: Results, *, started: datetime, seconds: float, toy: bool) -> None:
    """Replace the note as a whole, so that a reader never sees half of one."""
    text = "\n".join(paragraphs(results, started=started, seconds=seconds, toy=toy))
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def paragraphs(results: Results, *, started: datetime, seconds: float, toy: bool) -> Iterator[str]:
    yield f"# GPU day, {started:%Y-%m-%d %H:%M}"
    yield ""
    if toy:
        yield "A toy: small models on a CPU under Triton's interpreter. **No number below says anything about a GPU.**"
        yield ""
    yield from header(results, seconds)
    yield from section("Goals", goal_table(results))
    for record in results.measured("profile"):
        yield from profile(record)
    yield from section("Training steps", table(("model", "variant", *STEP_COLUMNS), step_rows(results)))
    yield from section("Attention layer, dropout 0.1", variant_table(results, "layer", OP_COLUMNS[:4]))
    yield from section("Attention op", variant_table(results, "op", OP_COLUMNS))
    yield from section("Kernels", table(("measured at", "kernel", *KERNEL_COLUMNS, "choice"), kernel_rows(results)))
    yield from section("Tiles", table(("backend", "kernel", "tiles", "ms", "default", "problem"), tile_rows(results)))
    yield from section("Bytes kept per token and layer", kept_lines(results))
    yield from section("Agreement with the reference in fp32", agreement_lines(results))
    yield from section("Failed", reasons(results.with_status(FAILED)))
    yield from section("Skipped", reasons(results.with_status(SKIPPED)))


def header(results: Results, seconds: float) -> Iterator[str]:
    yield f"Commit {commit()}, {seconds:.0f} s, `python benchmarks/gpu_day.py`."
    for record in results.measured("device"):
        for key, value in record.values.items():
            yield f"* {key}: {shown(value)}"


def goal_table(results: Results) -> Iterator[str]:
    rows = []
    for goal, value in verdicts(results):
        found = "not measured" if value is None else f"{shown(float(value))}{goal.unit}"
        met = "" if value is None else ("yes" if goal.is_met(value) else "**no**")
        rows.append((goal.number, goal.what, goal.wanted, found, met))
    yield from table(("goal", "of", "wanted", "measured", "met"), rows)
    missed = dict.fromkeys(number for number, *_, met in rows if "no" in met)
    yield ""
    yield f"Falls short: {', '.join(missed)}." if missed else "Nothing that was measured falls short."


def profile(record: Record) -> Iterator[str]:
    """Where one step's time goes, the largest first."""
    values = record.values
    yield from section(f"Where the time goes: {record.name.removesuffix(': profile')}", [])
    if not values["kernels"]:
        yield "The profiler saw no kernel."
        return
    yield (
        f"Of one step, under the profiler, which slows the host: {values['span_ms']:.2f} ms, the device busy for "
        f"{values['busy_ms']:.2f} and idle for {values['idle']:.1%} of it in {values['gap_count']:.0f} gaps; "
        f"{values['kernel_count']:.0f} kernels, {values['launches']:.0f} launches."
    )
    yield ""
    rows = [(k["name"], f"{k['count']:.1f}", f"{k['ms']:.3f}", f"{k['share']:.1%}") for k in values["kernels"]]
    yield from table(("kernel", "launches", "ms", "of the step"), rows)
    yield ""
    for gap in values["gaps"]:
        yield f"* idle {gap['ms']:.3f} ms after `{gap['after']}`, before `{gap['before']}`"
    for copy in values["copies"]:
        yield f"* {copy['count']:.1f} x {copy['name']}, {copy['ms']:.3f} ms"
    for wait in values["waits"]:
        yield f"* {wait['count']:.1f} waits of the host in {wait['name']}, {wait['ms']:.2f} ms (the record ends in one)"
    for place, count in values.get("waiting_lines", {}).items():
        yield f"* the host waits {count} times at {place}"


def step_rows(results: Results) -> list[Row]:
    return [
        (record.parameters["model"], record.parameters["variant"], *(record.values.get(key) for key in STEP_COLUMNS))
        for record in results.measured("step")
    ]


def variant_table(results: Results, kind: str, columns: Sequence[str]) -> Iterator[str]:
    """One row for each variant at each point, with its time over that of our best."""
    rows: list[Row] = []
    for record in results.measured(kind):
        place = {key: record.parameters[key] for key in ("point", "dropout")}
        best = results.value(kind, "both_ms", ours=True, **place)
        of_ours = record.values["both_ms"] / best if best else None
        head = (place["point"], place["dropout"], record.parameters["variant"])
        rows.append((*head, *(record.values.get(key) for key in columns), of_ours))
    return table(("N", "dropout", "variant", *columns, "of our time"), rows)


def kernel_rows(results: Results) -> list[Row]:
    rows: list[Row] = []
    for record in results.measured("kernel"):
        at = record.name.removeprefix("kernels ").partition(":")[0]
        values = (record.values.get(key) for key in KERNEL_COLUMNS)
        rows.append((at, record.parameters["kernel"], *values, shown(record.values.get("choice", {}))))
    return rows


def tile_rows(results: Results) -> list[Row]:
    rows: list[Row] = []
    for record in results.measured("tiles"):
        head = (record.parameters.get(key) for key in ("variant", "kernel", "tiles"))
        values = record.values
        rows.append((*head, values.get("ms"), "yes" if values.get("default") else "", values.get("problem")))
    return rows


def kept_lines(results: Results) -> list[str]:
    records = (*results.measured("kept"), *results.measured("kept on a CPU"))
    return [f"* {record.name}: {record.values['kib_per_token_per_layer']:.2f} KiB" for record in records]


def agreement_lines(results: Results) -> list[str]:
    return [f"* {record.name}: {shown(record.values)}" for record in results.measured("agreement")]


def reasons(records: Iterable[Record]) -> list[str]:
    return [f"* {record.name}: {record.reason}" for record in records]


def section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from lines


def table(columns: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        yield "Nothing was measured."
        return
    yield "| " + " | ".join(column.replace("_", " ") for column in columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(shown(cell).replace("|", "/") for cell in row) + " |"


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return str(value)


def commit() -> str:
    """Of this checkout, and whether it has changes; "unknown" outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
