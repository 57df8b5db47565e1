"""`megadeberta report`: how a run went, from its metrics file."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from megadeberta.errors import ConfigError
from megadeberta.layers.terms import TERMS
from megadeberta.observability.metrics import CURVE_FILE, METRICS_FILE, SOURCE_MARK, Record, read_metrics
from megadeberta.observability.progress import format_terms

ROWS_SHOWN = 8
TRAIN_LOSS, VALID_LOSS = "loss", "valid_loss"
_VALID = "valid_"


def print_report(output_dir: Path, console: Console) -> None:
    """Print the end of the curve as a table, the best validation beside its baseline, and where the picture is.

    Raises:
        ConfigError: the folder holds no metrics of a training run.
    """
    records = read_metrics(output_dir / METRICS_FILE)
    if not any(TRAIN_LOSS in record for record in records):
        raise ConfigError(f"{output_dir} holds no {METRICS_FILE} with training steps; give a run's training.output_dir")
    console.print(_curve_table(records))
    validations = [record for record in records if record.get(VALID_LOSS) is not None]
    if validations:
        console.print(_verdict(validations[-1]))
        sources = _sources_line(validations[-1])
        if sources:
            console.print(sources, soft_wrap=True, highlight=False)
    picture = output_dir / CURVE_FILE
    if picture.exists():
        console.print(f"loss curve: {picture}", soft_wrap=True)


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
            means = {name.removeprefix(_VALID): value for name, value in valid_terms.items() if value is not None}
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
        table.add_row(*row)
    return table


def _sources_line(record: Record) -> str:
    """The loss of each validation file; empty where there is one."""
    start = f"{VALID_LOSS}{SOURCE_MARK}"
    found = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
    parts = [f"{name} {value:.3f}" for name, value in found.items() if value is not None]
    return f"validation loss of each source: {', '.join(parts)}" if parts else ""


def _verdict(record: Record) -> str:
    """The loss of predicted tokens beside what word frequencies alone give; else the total."""
    predicted = (entry for entry in TERMS.values() if entry.predicts_tokens)
    entry = next((entry for entry in predicted if record.get(f"{_VALID}{entry.name}") is not None), None)
    if entry is None:
        return f"validation loss {record[VALID_LOSS]:.3f} after step {record['step']}"
    loss, unigram = record[f"{_VALID}{entry.name}"], record.get("unigram_cross_entropy")
    line = f"validation {entry.title} {loss:.3f} {entry.unit} after step {record['step']}"
    if unigram is None:
        return line
    return f"{line}; unigram cross-entropy of the validation text {unigram:.3f}: {unigram - loss:.3f} nats better"
