"""`megadeberta evaluate`. Torch is imported after the arguments."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megadeberta.config.plugins import PluginOption
from megadeberta.config.waiting import Waiting


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            help="training.output_dir, one step-N folder, an imported folder, an export, or a DeBERTa of transformers "
            "(folder, file or OWNER/MODEL)",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Prefix of a token file; default: the validation data of the run")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 file: its perplexity, left to right and by masking each token in turn")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="At most this many sequences of it")] = 512,
    length: Annotated[
        int | None, typer.Option(help="Tokens per sequence; default: as in training", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at a time")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
    plugin: PluginOption = None,
) -> None:
    """Score weights: token losses by mask kind, replaced tokens, perplexity of a text, as applicable to the objective.

    Example: megadeberta evaluate runs/quickstart --sequences 256
    """
    with Waiting("loading torch"):
        from megadeberta.convert.any_model import load_model
        from megadeberta.evaluate.run import score
    with Waiting(f"scoring {path}"):
        source = load_model(path)
        scores = score(source, shard=data, text=text, sequences=sequences, length=length, batch_size=batch_size)
    if as_json:
        known = {name: None if math.isnan(value) else value for name, value in scores.items()}
        typer.echo(
            json.dumps({"weights": str(source.folder), "step": source.run.get("step"), "scores": known}, indent=2)
        )
        return
    _show(scores, f"{source.folder}" + (f", step {source.run['step']:,}" if source.run else ""))


def _show(scores: Mapping[str, float], title: str) -> None:
    """The weights in a line that a narrow terminal leaves whole, and the scores as a table."""
    typer.echo(title)
    table = Table("score", "value")
    table.columns[1].justify = "right"
    for name, value in scores.items():
        whole = name.split()[0].endswith(("_tokens", "_targets"))
        digits = 0 if whole else 2 if "perplexity" in name else 4
        shown = "-" if math.isnan(value) else f"{value:,.{digits}f}"
        table.add_row(Text(name.replace("_", " ")), shown)
    Console().print(table)
