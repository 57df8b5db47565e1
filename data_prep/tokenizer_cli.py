"""`megadeberta tokenizer`: what to know of vocabularies. What needs numpy is imported inside the commands."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from megadeberta.config.waiting import Waiting
from megadeberta.data_prep.options import AUTO_FORMAT, DocumentPer, ReadOptions
from megadeberta.remote.parameter import path_or_address

if TYPE_CHECKING:
    from megadeberta.data.tokenizer import VocabularyTokenizer
    from megadeberta.data_prep.compare_tokenizers import Fit, TextFacts

app = typer.Typer(help="Look at vocabularies.", no_args_is_help=True, rich_markup_mode="markdown")


_Text = Annotated[
    list[Path],
    typer.Option(
        parser=path_or_address,
        help="File or folder of text that none of them was trained on; may be repeated",
        metavar="FILE",
    ),
]


@app.callback()
def _group() -> None:
    """Look at vocabularies."""


@app.command()
def compare(
    tokenizers: Annotated[
        list[Path],
        typer.Argument(
            help="Vocabularies: spm.model, tokenizer.json, vocab.txt, a folder with one of them, or a prepared folder",
            metavar="TOKENIZERS...",
        ),
    ],
    text: _Text,
    text_key: Annotated[list[str] | None, typer.Option(help="Key or column of the text, where it has any")] = None,
    document_per: Annotated[DocumentPer, typer.Option(help="What a document of a plain-text file is")] = (
        DocumentPer.PARAGRAPH
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")] = False,
) -> None:
    """Encode held-out text with several vocabularies, and show how well each fits.

    Fewer tokens per word make sequences hold more text; unknown tokens are text that a model can never read. Compare
    vocabularies of one size, on text like that of the training: a larger one always needs fewer tokens.

    Example: megadeberta tokenizer compare corpora/pretrain deberta-v3-base --text held-out.txt
    """
    from megadeberta.data_prep.compare_tokenizers import compare_tokenizers
    from megadeberta.data_prep.side_texts import read_texts

    with Waiting("comparing vocabularies"):
        loaded = [_load(path) for path in tokenizers]
        read = ReadOptions(document_per, AUTO_FORMAT, tuple(text_key or ("text",)))
        facts, fits = compare_tokenizers(loaded, read_texts(text, read, option="--text"))
    if as_json:
        about = {"documents": facts.documents, "bytes": facts.bytes, "words": facts.words.total()}
        found = {str(path): asdict(fit) for path, fit in zip(tokenizers, fits, strict=True)}
        typer.echo(json.dumps({"text": about, "tokenizers": found}, indent=2))
        return
    _print(Console(), tokenizers, facts, fits)


def _load(path: Path) -> "VocabularyTokenizer":
    from megadeberta.config.set_files import TOKENIZER_FOLDER, tokenizer_in
    from megadeberta.data.tokenizer import load_tokenizer

    prepared = tokenizer_in(path / TOKENIZER_FOLDER)
    return load_tokenizer(prepared if prepared.is_file() else path)


def _print(console: Console, names: Sequence[Path], facts: "TextFacts", fits: Sequence["Fit"]) -> None:
    line = f"{facts.documents:,} documents, {facts.words.total():,} words, {facts.bytes / 1e6:.1f} MB"
    console.print(line, soft_wrap=True, highlight=False)
    letters = [chr(ord("A") + number % 26) for number in range(len(names))]
    for letter, name in zip(letters, names, strict=True):
        console.print(f"{letter} = {name}", soft_wrap=True, highlight=False, markup=False)
    table = Table("", *letters)
    rows = {
        "kind": [fit.kind for fit in fits],
        "entries": [f"{fit.entries:,}" for fit in fits],
        "tokens": [f"{fit.tokens:,}" for fit in fits],
        "tokens per word": [f"{fit.tokens_per_word:.3f}" for fit in fits],
        "bytes per token": [f"{fit.bytes_per_token:.2f}" for fit in fits],
        "words of one token": [f"{fit.whole_words:.1%}" for fit in fits],
        "unknown tokens": [f"{fit.unknown_tokens:.3%}" for fit in fits],
        "characters covered": [f"{1 - fit.uncovered_characters:.3%}" for fit in fits],
        "entries that occur": [f"{fit.entries_used:.1%}" for fit in fits],
    }
    for row, values in rows.items():
        table.add_row(row, *values)
    console.print(table)
