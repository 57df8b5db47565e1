"""`megadeberta evaluate`. Torch is imported after the arguments."""

import math
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
        typer.Argument(help="training.output_dir, one step-N folder, or an imported folder", show_default=False),
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
    plugin: PluginOption = None,
) -> None:
    """Score weights: token losses by mask kind, replaced tokens, perplexity of a text, as applicable to the objective.

    Example: megadeberta evaluate runs/quickstart --sequences 256
    """
    from megadeberta.evaluate.run import evaluate as score

    with Waiting(f"scoring {path}"):
        scores = score(path, shard=data, text=text, sequences=sequences, length=length, batch_size=batch_size)
    table = Table("score", "value", title=Text(str(path)), title_justify="left")
    table.columns[1].justify = "right"
    for name, value in scores.items():
        whole = name.split()[0].endswith(("_tokens", "_targets"))
        shown = "-" if math.isnan(value) else f"{value:,.0f}" if whole else f"{value:,.4f}"
        table.add_row(Text(name.replace("_", " ")), shown)
    Console().print(table)
