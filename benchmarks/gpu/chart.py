"""The chart of a day: every timed variant as a bar."""

import importlib.util
from pathlib import Path

from gpu.results import Results


def draw_chart(path: Path, results: Results) -> str:
    """Draw what there is; a line that says where it is, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "chart skipped: matplotlib not installed"
    panels: dict[str, dict[str, float]] = {}
    for kind in ("op", "layer"):
        for record in results.measured(kind):
            place = record.parameters
            title = f"{kind} N={place['point']}, dropout {place['dropout']}, forward and backward, ms"
            panels.setdefault(title, {})[place["variant"]] = record.values["both_ms"]
    for record in results.measured("step"):
        bar = f"{record.parameters['model']}: {record.parameters['variant']}"
        panels.setdefault("training step, thousand tokens per second", {})[bar] = record.values["tokens_per_s"] / 1e3
    if not panels:
        return "chart skipped: nothing was timed"
    from stopwatch import draw_bars

    draw_bars(str(path), panels)
    return f"the chart is {path}"
