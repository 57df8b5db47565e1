"""`megadeberta data`: what to do with prepared sets. What needs numpy is imported inside the commands."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from megadeberta.config.terminal import print_line
from megadeberta.data_prep.cli import MaxFileSize, closing_line, plot_lengths
from megadeberta.data_prep.options import parse_size
from megadeberta.errors import ConfigError
from megadeberta.remote.parameter import path_or_address

if TYPE_CHECKING:
    from megadeberta.data.shard_manifest import ShardManifest

app = typer.Typer(
    help="Look into prepared sets, and make new sets of them. Every set is a folder that `megadeberta prep` or one of "
    "these commands wrote.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Set = Annotated[
    Path,
    typer.Argument(
        parser=path_or_address,
        help="A prepared folder: the --output of prep, or its address (s3://bucket/set)",
        metavar="SET",
    ),
]
_Folders = Annotated[
    list[Path],
    typer.Argument(
        parser=path_or_address, help="The --output of every `prep --part`, or finished sets", metavar="FOLDERS..."
    ),
]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the new set", metavar="DIR")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the finished set in DIR")]


@app.command()
def inspect(
    folder: _Set,
    documents: Annotated[int, typer.Option(min=0, help="Random documents to show")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to show of each")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Another number shows other documents and masks")] = 1,
) -> None:
    """Show what a set holds: documents, copies, lengths as a picture, files, and documents as training masks them.

    In a document, [seen→token] is a token to predict: [MASK→was] hides it, another word stands for a random
    replacement, and [was→was] is one that is kept.

    Example: megadeberta data inspect corpora/wikitext2-shards --documents 5
    """
    from megadeberta.data_prep import inspection
    from megadeberta.data_prep.finished_sets import FinishedSet
    from megadeberta.data_prep.progress import Stages

    console = Console()
    with FinishedSet(folder) as one:
        with Stages(console) as stages:
            found = inspection.set_statistics(one, stages)
        for split, about in found.items():
            line = f"{split}: {about.num_documents:,} documents, {about.num_tokens:,} tokens, {about.copies:,} copies"
            print_line(console, f"{line}; tokens of a document:")
            for bar in inspection.length_bars(about.lengths):
                print_line(console, bar)
        files = one.sources(*one.shards)
        for source in files[:_FILES]:
            print_line(console, f"from {source.name}, {source.bytes:,} bytes")
        if len(files) > _FILES:
            print_line(console, f"and {len(files) - _FILES:,} more files")
        train = one.shards["train"]
        for number in inspection.choose_documents(train, documents, seed):
            print_line(console, f"document {number:,} of train:")
            shown = train.document(number)[:tokens]
            print_line(console, inspection.masked_sample(one.tokenizer, shown, seed=seed))


_FILES = 5


@app.command()
def stats(
    folder: _Set,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")] = False,
) -> None:
    """Count a set: documents, tokens, lengths, copies, unknown tokens, and vocabulary entries that occur.

    Example: megadeberta data stats corpora/wikitext2-shards --json
    """
    from megadeberta.data_prep.finished_sets import FinishedSet
    from megadeberta.data_prep.inspection import set_statistics
    from megadeberta.data_prep.progress import Stages

    console = Console()
    with FinishedSet(folder) as one, Stages(Console(quiet=True) if as_json else console) as stages:
        found = {split: about.to_json() for split, about in set_statistics(one, stages).items()}
        entries = one.tokenizer.num_pieces
    if as_json:
        typer.echo(json.dumps({"vocabulary_entries": entries, **found}, indent=2))
        return
    table = Table("", *found)
    for name in next(iter(found.values())):
        if name != "document_tokens":
            table.add_row(name.replace("_", " "), *(f"{about[name]:,}" for about in found.values()))
    for name in found["train"]["document_tokens"]:
        table.add_row(
            f"tokens per document, {name}", *(f"{s['document_tokens'].get(name, 0):,}" for s in found.values())
        )
    console.print(table)
    print_line(console, f"the vocabulary has {entries:,} entries")


@app.command()
def sample(
    folder: _Set,
    output: _Output,
    fraction: Annotated[float, typer.Option(help="Of the training documents; 0.05 is 5 %")],
    max_file_size: MaxFileSize = None,
    overwrite: _Overwrite = False,
) -> None:
    """Take a fraction of the training documents by the hash of each one; validation and test documents stay whole.

    The same document is always taken or always left, a sample of 1 % is part of that of 5 %, and the loss of
    experiments on both is measured on the same validation documents.

    Example: megadeberta data sample corpora/pretrain --fraction 0.05 --output corpora/pretrain-5percent
    """
    from megadeberta.data_prep.derived_sets import Target, sample_set
    from megadeberta.data_prep.finished_sets import FinishedSet
    from megadeberta.data_prep.progress import Stages

    console, target = Console(), Target(output, overwrite, parse_size(max_file_size))
    with FinishedSet(folder) as one, Stages(console) as stages:
        made = sample_set(one, target, fraction=fraction, stages=stages)
    _print_set(console, output, made)


@app.command()
def split(
    folder: _Set,
    output: _Output,
    valid: Annotated[float, typer.Option(help="Fraction of the documents for validation")] = 0.005,
    test: Annotated[float, typer.Option(help="Fraction of the documents for testing")] = 0.005,
    max_file_size: MaxFileSize = None,
    overwrite: _Overwrite = False,
) -> None:
    """Divide all documents of a set anew into train, valid and test, by the hash of each document's content.

    Where a document goes depends on nothing but itself: equal documents are on one side, and when the corpus grows,
    what was held out stays held out.

    Example: megadeberta data split corpora/pretrain --valid 0.01 --test 0.01 --output corpora/pretrain-split
    """
    from megadeberta.data_prep.derived_sets import Target, split_set
    from megadeberta.data_prep.finished_sets import FinishedSet
    from megadeberta.data_prep.progress import Stages

    console, target = Console(), Target(output, overwrite, parse_size(max_file_size))
    with FinishedSet(folder) as one, Stages(console) as stages:
        made = split_set(one, target, valid=valid, test=test, stages=stages)
    _print_set(console, output, made)


@app.command()
def merge(
    folders: _Folders,
    output: _Output,
    max_file_size: MaxFileSize = None,
    overwrite: _Overwrite = False,
) -> None:
    """Join the parts of a corpus that several machines prepared, or finished sets with the same tokenizer.

    Parts give the set that one machine would have made: token files, manifests and tokenizer are the same byte for
    byte. Validation documents are chosen, and with --deduplicate copies left out, over all parts. Parts of other files,
    options or tokenizers are refused, and a part that is missing is named. The folders of the parts stay as they are.

    Finished sets are joined split by split, in the order they are given.

    Example, on machine 2 of 4, and then on any one that sees all folders:

    megadeberta prep corpus/ --tokenizer spm.model --part 2/4 --output parts/2

    megadeberta data merge parts/1 parts/2 parts/3 parts/4 --output corpora/pretrain
    """
    if output.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(f"--output={output} is one of the parts; give another folder")
    from megadeberta.data_prep.machines import is_part

    console = Console()
    if any(is_part(folder) for folder in folders):
        if max_file_size is not None:
            raise ConfigError("--max-file-size of parts is that of their `prep --part`: give it there, to all of them")
        from megadeberta.data_prep.merge_machines import merge_machines

        outcome = merge_machines(folders, output, console=console, plot=plot_lengths, overwrite=overwrite)
        print_line(console, closing_line(outcome, output))
        return
    _merge_finished(console, folders, output, overwrite=overwrite, max_file_bytes=parse_size(max_file_size))


def _merge_finished(
    console: Console, folders: list[Path], output: Path, *, overwrite: bool, max_file_bytes: int | None
) -> None:
    from megadeberta.data_prep.derived_sets import Target, merge_sets
    from megadeberta.data_prep.finished_sets import FinishedSet
    from megadeberta.data_prep.progress import Stages

    target = Target(output, overwrite, max_file_bytes)
    with ExitStack() as stack, Stages(console) as stages:
        sets = [stack.enter_context(FinishedSet(folder)) for folder in folders]
        made = merge_sets(sets, target, stages=stages)
    _print_set(console, output, made)


def _print_set(console: Console, output: Path, made: "dict[str, ShardManifest]") -> None:
    for name, manifest in made.items():
        print_line(console, f"{output}: {name} {manifest.num_tokens:,} tokens in {manifest.num_documents:,} documents")
