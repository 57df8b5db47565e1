"""``megadeberta init``: a recipe for a prepared corpus. Torch-free: it also runs on a login node."""

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from megadeberta.config.recipe_text import recipe_text
from megadeberta.config.run import RunConfig
from megadeberta.config.terminal import print_line, table_console
from megadeberta.errors import ConfigError
from megadeberta.plan.new_recipe import USUAL_NAME, Wishes, epochs, new_recipe
from megadeberta.preflight.corpus import Corpus, read_corpus
from megadeberta.rank.devices import count_local_devices, smallest_device_gib
from megadeberta.storage import write_file

ON_GPUS, ON_CPU = "deberta-v3-base", "small-rtd"
_BASE_HELP = f"What it builds on  [default: {ON_GPUS}, on a machine without GPUs {ON_CPU}]"
_OUTPUT_HELP = (
    "The recipe to write; JSON, or YAML by its ending. Its name names the run, recipe.json the folder of --data"
)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def init(
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The --output folder of `megadeberta prep`")],
    output: Annotated[Path, typer.Option(metavar="FILE", help=_OUTPUT_HELP)] = Path(f"{USUAL_NAME}.json"),
    base: Annotated[str | None, typer.Option(metavar="RECIPE", help=_BASE_HELP)] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help="Tokens to train on, e.g. 20B  [default: the base's, at most 40 epochs]"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=8, help="Tokens per sequence  [default: the base's; less for short documents]")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of one machine  [default: those here]")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.001, metavar="GIB", help="Memory per GPU  [default: as nvidia-smi says]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE")] = False,
) -> None:
    """Write a recipe for a prepared corpus: vocabulary, length, steps, batch, and the layout of this machine.

    Every value can be changed in the file or with `--set`; docs/recipes.md says how each is chosen.

    Example: megadeberta init --data corpora/mine --tokens 2B
    """
    _check_output(output, overwrite=overwrite)
    corpus = read_corpus(data)
    gpus = count_local_devices(os.environ) if gpus is None else gpus
    wishes = Wishes(
        base=base or (ON_GPUS if gpus else ON_CPU),
        gpus=gpus,
        memory_gib=memory or (smallest_device_gib() if gpus else None),
        tokens=None if tokens is None else _count(tokens),
        length=length,
    )
    values, config = new_recipe(corpus, output, wishes)
    write_file(output, recipe_text(values, output).encode())
    console = table_console()
    for line in _summary(output, corpus, config, wishes):
        print_line(console, line)


def _summary(output: Path, corpus: Corpus, config: RunConfig, wishes: Wishes) -> list[str]:
    steps, batch, length = config.training.steps, config.engine.global_batch, config.data.sequence_length
    tokens, name = steps * batch * length, shlex.quote(str(output))
    as_ranks = f" --ranks {wishes.gpus}" if wishes.gpus > 1 else ""
    return [
        f"{output}: {wishes.base} on {corpus.folder}, {corpus.tokens:,} tokens, {config.model.vocab_size:,} rows of "
        "vocabulary",
        f"{steps:,} steps of {batch:,} sequences of {length} tokens: {tokens:,} tokens, "
        f"{epochs(corpus, steps * batch, length):.3g} epochs; output {config.training.output_dir}",
        f"check it: megadeberta train {name} --dry-run{as_ranks}",
        f"start it: megadeberta launch {name}",
    ]


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists; choose another --output, or replace it with --overwrite")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"the folder {output.parent} of --output does not exist; make it, or choose another")


def _count(text: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?|[0-9.]+e[0-9]+)\s*([kmbgt]?)", text.strip().lower())
    number = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2]] if match else 0
    if not 1 <= number < 1e18:
        raise ConfigError(f"--tokens={text} is no number of tokens; give one such as 300M, 20B or 2500000")
    return round(number)
