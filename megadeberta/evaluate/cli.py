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
from megadeberta.config.terminal import say
from megadeberta.config.waiting import Waiting
from megadeberta.errors import ConfigError

Weights = Annotated[
    Path,
    typer.Argument(
        help="The training.output_dir of a run, one step-N folder, an imported folder, an export, or a DeBERTa of "
        "transformers (folder, file or OWNER/MODEL); with --blimp any masked model of transformers",
        show_default=False,
    ),
]
Data = Annotated[Path | None, typer.Option(help="Prefix of a token file; default: the validation data of the run")]
TextFile = Annotated[
    Path | None, typer.Option(help="UTF-8 file: its perplexity, left to right and by masking each token in turn")
]
Blimp = Annotated[
    Path | None, typer.Option(help="BLiMP's pairs of sentences (.jsonl, .jsonl.gz or a folder): the accuracy on them")
]
PairLimit = Annotated[
    int | None, typer.Option("--pairs", min=1, help="The first of each paradigm of --blimp; default: all")
]
Sequences = Annotated[int, typer.Option(min=1, help="At most this many sequences of it")]
Length = Annotated[int | None, typer.Option(help="Tokens per sequence; default: as in training", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences at a time")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def evaluate(
    path: Weights,
    data: Data = None,
    text: TextFile = None,
    blimp: Blimp = None,
    pairs: PairLimit = None,
    sequences: Sequences = 512,
    length: Length = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
    plugin: PluginOption = None,
) -> None:
    """Score weights: token losses by mask kind, replaced tokens, perplexity of a text, as applicable to the objective.

    Example: megadeberta evaluate runs/quickstart --sequences 256
    """
    if blimp is not None:
        if data is not None or text is not None:
            raise ConfigError("--blimp is scored alone; leave --data and --text to a second command")
        _score_pairs(path, blimp, most=pairs, batch_size=batch_size, as_json=as_json)
        return
    if pairs is not None:
        raise ConfigError("--pairs is of --blimp; give --blimp FILE too, or leave it out")
    from megadeberta.convert.find import find_any_model
    from megadeberta.evaluate.inputs import check_files, check_inputs

    check_files(data, text)
    place = find_any_model(path)
    check_inputs(place, shard=data, text=text, length=length)
    with Waiting("loading torch"):
        from megadeberta.convert.any_model import load_model
        from megadeberta.evaluate.run import score
    with Waiting(f"scoring {path}"):
        source = load_model(place)
        scores = score(source, shard=data, text=text, sequences=sequences, length=length, batch_size=batch_size)
    if as_json:
        _print_json(scores, str(source.folder), source.run.get("step"))
    else:
        _show(scores, f"{source.folder}" + (f", step {source.run['step']:,}" if source.run else ""))


def _print_json(scores: Mapping[str, float], weights: str, step: int | None) -> None:
    known = {name: None if math.isnan(value) else value for name, value in scores.items()}
    typer.echo(json.dumps({"weights": weights, "step": step, "scores": known}, indent=2))


def _score_pairs(path: Path, blimp: Path, *, most: int | None, batch_size: int, as_json: bool) -> None:
    from megadeberta.convert.find import find_any_model
    from megadeberta.evaluate.inputs import read_pairs

    pairs = read_pairs(blimp, most=most)
    find_any_model(path, of_others=True)
    with Waiting("loading torch"):
        from megadeberta.evaluate.minimal_pairs import score_pairs
        from megadeberta.evaluate.token_models import open_token_model
    with Waiting(f"scoring {len(pairs)} pairs"):
        model, weights, step = open_token_model(path)
        found = score_pairs(model, pairs, batch_size=batch_size)
    if as_json:
        typer.echo(json.dumps({"weights": weights, "step": step, "blimp": vars(found)}, indent=2))
        return
    say(weights + (f", step {step:,}" if step is not None else ""))
    table = Table("BLiMP", "accuracy")
    table.columns[1].justify = "right"
    for group in (found.paradigms, found.phenomena, found.fields):
        for name, value in group.items():
            table.add_row(Text(name.replace("_", " ")), f"{value:.3f}")
        table.add_section()
    table.add_row(f"all {found.pairs:,} pairs", f"{found.accuracy:.3f} ± {found.interval:.3f}")
    Console().print(table)


def _show(scores: Mapping[str, float], title: str) -> None:
    """The weights in a line that a narrow terminal leaves whole, and the scores as a table."""
    say(title)
    table = Table("score", "value")
    table.columns[1].justify = "right"
    for name, value in scores.items():
        whole = name.split()[0].endswith(("_tokens", "_targets"))
        digits = 0 if whole else 2 if "perplexity" in name else 4
        shown = "-" if math.isnan(value) else f"{value:,.{digits}f}"
        table.add_row(Text(name.replace("_", " ")), shown)
    Console().print(table)
