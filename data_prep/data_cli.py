"""`megadeberta data`: what to do with prepared sets. What needs numpy is imported inside the commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.data_prep.cli import closing_line, plot_lengths, print_line
from megadeberta.errors import ConfigError

app = typer.Typer(
    help="Join what several machines prepared.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the new set.", metavar="DIR")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the finished set in DIR.")]


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="The --output of every `prep --part`.", metavar="PART-DIRS...")],
    output: _Output,
    overwrite: _Overwrite = False,
) -> None:
    """Join the parts of a corpus that several machines prepared into the set that one machine would have made.

    The token files, manifests and tokenizer are the same byte for byte: validation documents are chosen, and with
    --deduplicate copies left out, over all parts. Parts of other files, options or tokenizers are refused, and a part
    that is missing is named. The folders of the parts stay as they are.

    Example, on machine 2 of 4, and then on any one that sees all folders:

    megadeberta prep corpus/ --tokenizer spm.model --part 2/4 --output parts/2

    megadeberta data merge parts/1 parts/2 parts/3 parts/4 --output corpora/pretrain
    """
    if output.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(f"--output={output} is one of the parts; give another folder")
    from megadeberta.data_prep.merge_machines import merge_machines

    console = Console()
    outcome = merge_machines(folders, output, console=console, plot=plot_lengths, overwrite=overwrite)
    print_line(console, closing_line(outcome, output))
