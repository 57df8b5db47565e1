"""`megadeberta report`: how a run went, from its metrics file."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megadeberta.config.terminal import print_line
from megadeberta.layers.terms import TERMS, baselines
from megadeberta.observability.metrics import CURVE_FILE, SOURCE_MARK, Record
from megadeberta.observability.progress import format_terms

ROWS_SHOWN = 8
TRAIN_LOSS, VALID_LOSS = "loss", "valid_loss"
_VALID = "valid_"


def print_report(output_dir: Path, records: list[Record], console: Console) -> None:
    """Print the end of the curve as a table, the last validation beside its baselines, and where the picture is.

    Args:
        records: of the run's metrics.
    """
    console.print(_curve_table(records))
    validations = [record for record in records if record.get(VALID_LOSS) is not None]
    if validations:
        for line in verdicts(validations[-1]):
            print_line(console, line)
        sources = _sources_line(validations[-1])
        if sources:
            print_line(console, sources)
    picture = output_dir / CURVE_FILE
    if picture.exists():
        console.print(f"loss curve: {picture}", soft_wrap=True, markup=False)


def _curve_table(records: list[Record]) -> Table:
    table = Table("step", "training loss", "validation loss", "perplexity", "terms", title="end of the curve")
    losses: list[float] = []
    rows = []
    for record in records:
        if record.get(TRAIN_LOSS) is not None:
            losses.append(record[TRAIN_LOSS])
        elif record.get(VALID_LOSS) is not None:
            mean = f"{sum(losses) / len(losses):.3f}" if losses else "-"
            valid_terms = {name: value for name, value in record.items() if name.startswith(_VALID)}
            means = {name.removeprefix(_VALID): math.nan if v is None else v for name, v in valid_terms.items()}
            valid = (
                f"{record[VALID_LOSS]:.3f}",
                f"{record['valid_perplexity']:.1f}" if record.get("valid_perplexity") is not None else "-",
                " ".join(format_terms(means)),
            )
            rows.append((str(record["step"]), mean, *valid))
            losses = []
    if losses:
        rows.append((str(records[-1]["step"]), f"{sum(losses) / len(losses):.3f}", "-", "-", "-"))
    for row in rows[-ROWS_SHOWN:]:
        table.add_row(*map(Text, row))
    return table


def _sources_line(record: Record) -> str:
    """The loss of each validation file; empty where there is one."""
    start = f"{VALID_LOSS}{SOURCE_MARK}"
    found = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
    parts = [f"{name} {value:.3f}" for name, value in found.items() if value is not None]
    return f"validation loss of each source: {', '.join(parts)}" if parts else ""


def verdicts(record: Record) -> list[str]:
    """Of a validation: a line per loss, beside what a model that sees no context has; else the total alone."""
    terms = {name.removeprefix(_VALID): value for name, value in record.items() if name.startswith(_VALID)}
    beside = baselines(terms, record.get("unigram_cross_entropy"))
    after = f"after step {record['step']}"
    lines = []
    for entry in TERMS.values():
        loss = terms.get(entry.name)
        if not entry.is_loss or loss is None:
            continue
        line = f"validation {entry.title} {loss:.3f} {entry.unit} {after}"
        if entry.name in beside:
            better = beside[entry.name] - loss
            words = f"{abs(better):.3f} nats {'better' if better >= 0 else 'worse'}"
            line += f"; {entry.baseline_title} {beside[entry.name]:.3f}: {words}"
        lines.append(line)
    return lines or [f"validation loss {record[VALID_LOSS]:.3f} {after}"]
