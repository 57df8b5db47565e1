"""`megadeberta prep` and `megadeberta verify`. What needs numpy or SentencePiece is imported inside the commands."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from megadeberta.config.terminal import print_line
from megadeberta.config.waiting import Waiting
from megadeberta.data_prep.options import (
    AUTO_FORMAT,
    BadLinePolicy,
    DecontaminateBy,
    Deduplication,
    DocumentPer,
    Normalizer,
    PrepOptions,
    ReadOptions,
    SplitOptions,
    UnreadablePolicy,
    VocabularyKind,
    VocabularyOptions,
    parse_expected,
    parse_size,
)
from megadeberta.errors import ConfigError
from megadeberta.remote.parameter import path_or_address

if TYPE_CHECKING:
    import numpy as np

    from megadeberta.data_prep.prepare import Outcome

_Corpora = Annotated[
    list[Path],
    typer.Argument(
        parser=path_or_address,
        help="Files, folders, patterns, or - for standard input: text, JSON lines, CSV, Parquet, Arrow, WET, "
        "Wikipedia or tar; plain, .gz, .zst, .bz2 or .xz",
    ),
]
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the vocabulary and the token files", metavar="DIR")
]
_VocabSize = Annotated[int | None, typer.Option(help="Train a vocabulary of this many pieces, specials included")]
_VocabKind = Annotated[
    VocabularyKind,
    typer.Option(
        metavar="KIND",
        help="Of a new vocabulary: unigram as DeBERTa v2 and v3, bpe as v1, or wordpiece as BERT and CamemBERTaV2",
    ),
]
_Normalizer = Annotated[
    Normalizer,
    typer.Option(
        metavar="NAME",
        help="Of a unigram vocabulary: nmt_nfkc folds forms of characters and spaces, nmt_nfkc_cf case too; nfkc and "
        "nfkc_cf leave invisible characters; identity changes nothing",
    ),
]
_KeepZwnj = Annotated[
    bool, typer.Option("--keep-zwnj", help="The zero-width non-joiner of Persian and others does not become a space")
]
_ByteFallback = Annotated[
    bool, typer.Option("--byte-fallback", help="With unigram: cut characters that the vocabulary lacks into bytes")
]
_Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="Use this vocabulary instead of training one: spm.model, tokenizer.json, vocab.txt, or a folder with it",
        metavar="FILE_OR_FOLDER",
    ),
]
_Valid = Annotated[
    list[Path] | None, typer.Option(parser=path_or_address, help="Separate validation corpus; may be repeated")
]
_ValidFraction = Annotated[float, typer.Option(help="Without --valid: fraction of documents held out; 0 = none")]
_ValidDocuments = Annotated[int | None, typer.Option(help="Without --valid: number of documents held out")]
_DocumentPer = Annotated[
    DocumentPer,
    typer.Option(
        metavar="UNIT", help="What one document of a plain-text file is: a paragraph, line, file or wikitext article"
    ),
]
_Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="By each file's first bytes (auto), or all files are: text, jsonl, csv, tsv, parquet, arrow, wet, "
        "wikipedia, wikiextractor, tar",
    ),
]
_TextKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--text-key",
        "--json-key",
        metavar="KEY",
        help='Key or column of the text ("text" unless given); "meta.text" is inside a record; several are joined',
    ),
]
_OnUnreadable = Annotated[
    UnreadablePolicy, typer.Option(help="A file of a folder in a format that is not read: stop, or skip and list it")
]
_Coverage = Annotated[float, typer.Option(help="Fraction of characters to cover; 1 for small alphabets")]
_SampleBytes = Annotated[
    int | None,
    typer.Option(
        help="Bytes of text to train it on. Without: 2000 per entry, 32 Mi at least, and what the memory allows: "
        "training takes 21 times as much memory, and a second of one core per megabyte"
    ),
]
_Temperature = Annotated[
    float,
    typer.Option(help="T: a corpus of n bytes has a part of the sample in proportion to n^(1/T); 1 = to its size"),
]
_Weights = Annotated[
    list[float] | None,
    typer.Option("--vocab-weight", help="Times this; once for each corpus, in their order. No text is repeated"),
]
_Deduplicate = Annotated[
    Deduplication, typer.Option(help="Keep the first of equal documents (exact), and of similar ones too (near)")
]
_Similarity = Annotated[
    float, typer.Option(help="With near: leave out what shares this fraction of its words, in order, with another")
]
_Quality = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RULE=VALUE",
        help="Leave out documents that break a rule; may be repeated. min-characters, max-characters, min-words, "
        "max-words, max-symbols=0.25, max-repeated=0.3, min-script=Latin:0.8, language=de,nl; or web, a preset",
    ),
]
_Decontaminate = Annotated[
    list[Path] | None,
    typer.Option(
        parser=path_or_address,
        metavar="FILE",
        help="Leave out documents with text of this test set; may be repeated",
    ),
]
_DecontaminateBy = Annotated[
    DecontaminateBy, typer.Option(help="What is text of a test set: a run of 13 words, or a sentence of 8 or more")
]
_OnBadLine = Annotated[
    BadLinePolicy, typer.Option(help="Count it and leave it out (skip), or fail at the first (stop)")
]
_MaxBad = Annotated[float, typer.Option(help="Fail if a larger fraction of lines or files is unusable")]
_MaxUnknown = Annotated[
    float, typer.Option(help="Fail if a larger fraction of the tokens is unknown to the vocabulary")
]
_ExpectScript = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:FRACTION",
        help="Fail if less of the letters is of this script, such as Latin:0.9; may be repeated",
    ),
]
_Languages = Annotated[
    bool, typer.Option("--languages", help="Say which languages the text is in, by a sample of the documents")
]
_ExpectLanguage = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE:FRACTION",
        help="Fail if less of the text is of this language, such as de:0.8; may be repeated",
    ),
]
_MaxLine = Annotated[int, typer.Option(help="Skip longer lines; limits memory")]
_MaxExpansion = Annotated[int, typer.Option(help="Largest accepted ratio of text to compressed bytes")]
_Workers = Annotated[
    int, typer.Option("--workers", "-j", help="Processes; 0 = one per core. Does not affect the output")
]
_Part = Annotated[
    str | None,
    typer.Option(
        help="Encode part I of N only, on one of N machines with the same files; `megadeberta data merge` joins them",
        metavar="I/N",
    ),
]
MaxFileSize = Annotated[
    str | None,
    typer.Option(help="Several token files for each split, no file larger than this, such as 4G", metavar="SIZE"),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the finished output in DIR")]


def prep(
    corpora: _Corpora,
    output: _Output,
    vocab_size: _VocabSize = None,
    tokenizer: _Tokenizer = None,
    valid: _Valid = None,
    valid_fraction: _ValidFraction = 0.005,
    valid_documents: _ValidDocuments = None,
    deduplicate: _Deduplicate = Deduplication.NONE,
    similarity: _Similarity = 0.75,
    quality: _Quality = None,
    decontaminate: _Decontaminate = None,
    decontaminate_by: _DecontaminateBy = DecontaminateBy.NGRAM,
    document_per: _DocumentPer = DocumentPer.PARAGRAPH,
    input_format: _Format = AUTO_FORMAT,
    text_key: _TextKeys = None,
    vocab_kind: _VocabKind = VocabularyKind.UNIGRAM,
    byte_fallback: _ByteFallback = False,
    normalizer: _Normalizer = Normalizer.NMT_NFKC,
    keep_zwnj: _KeepZwnj = False,
    character_coverage: _Coverage = 0.9995,
    vocab_sample_bytes: _SampleBytes = None,
    vocab_temperature: _Temperature = 1.0,
    vocab_weight: _Weights = None,
    on_bad_line: _OnBadLine = BadLinePolicy.SKIP,
    max_bad_fraction: _MaxBad = 0.01,
    max_line_bytes: _MaxLine = 32 << 20,
    max_expansion: _MaxExpansion = 100,
    on_unreadable: _OnUnreadable = UnreadablePolicy.STOP,
    max_unknown_fraction: _MaxUnknown = 0.05,
    expect_script: _ExpectScript = None,
    languages: _Languages = False,
    expect_language: _ExpectLanguage = None,
    workers: _Workers = 0,
    part: _Part = None,
    max_file_size: MaxFileSize = None,
    overwrite: _Overwrite = False,
) -> None:
    """Clean and tokenize a corpus into token files, with a vocabulary trained on it.

    Writes DIR/tokenizer, DIR/train.{bin,idx,json}, DIR/valid.{bin,idx,json}, DIR/report.json and
    DIR/lengths.png. A killed run resumes when the same command is run again; the bytes are the same for any number of
    workers.

    On several machines, each runs the same command with --tokenizer, its own --part 1/N to N/N and its own --output;
    then `megadeberta data merge` of the N folders gives the very bytes that one machine would have written.

    Example: megadeberta prep corpora/wikitext2/train.raw.gz --valid corpora/wikitext2/valid.raw.gz --document-per
    wikitext --vocab-size 8000 --output corpora/wikitext2-8k
    """
    text_keys = tuple(text_key or ("text",))
    read = ReadOptions(document_per, input_format, text_keys, max_line_bytes, max_expansion, on_unreadable)
    read = replace(read, count_languages=languages or bool(expect_language))
    options = PrepOptions(
        corpora=tuple(corpora),
        output=output,
        valid_corpora=tuple(valid or ()),
        vocabulary=VocabularyOptions(
            vocab_size,
            tokenizer,
            character_coverage,
            vocab_sample_bytes,
            vocab_temperature,
            tuple(vocab_weight or ()),
            vocab_kind,
            byte_fallback,
            normalizer,
            keep_zwnj,
        ),
        read=_with_filters(read, quality or (), decontaminate or (), decontaminate_by),
        split=SplitOptions(valid_fraction, valid_documents),
        deduplicate=deduplicate,
        similarity=similarity,
        on_bad_line=on_bad_line,
        max_bad_fraction=max_bad_fraction,
        max_unknown_fraction=max_unknown_fraction,
        expected_scripts=_expected_scripts(tuple(expect_script or ())),
        expected_languages=parse_expected("--expect-language", tuple(expect_language or ()), example="de:0.8"),
        workers=workers or len(os.sched_getaffinity(0)),
        overwrite=overwrite,
        max_file_bytes=parse_size(max_file_size),
        part=_parse_part(part) if part is not None else None,
    )
    from megadeberta.data_prep.pool import start_early

    start_early(options.corpora, workers=options.workers)
    from megadeberta.data_prep.prepare import prepare

    console = Console()
    outcome = prepare(options, console=console, plot=plot_lengths)
    print_line(console, closing_line(outcome, output))
    if outcome.train is None:
        print_line(
            console, f"when all parts are there: megadeberta data merge PART-DIRS... --output DIR (this one: {output})"
        )


def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_or_address,
            help="The --output of `megadeberta prep`, or its address (s3://bucket/set)",
            metavar="DIR",
        ),
    ],
) -> None:
    """Check prepared data byte by byte: hashes, sizes, counts, largest token id, and the tokenizer's hash.

    Example: megadeberta verify corpora/wikitext2-8k
    """
    from megadeberta.data_prep.verify import verify_set
    from megadeberta.remote.path import as_path

    with Waiting(f"verifying {as_path(folder)}"):
        verified = verify_set(folder)
    table = Table("shard", "documents", "tokens", "dtype", "largest id", "SHA-256 of .bin")
    for split, shard in verified.shards.items():
        counts = (f"{shard.num_documents:,}", f"{shard.num_tokens:,}", shard.dtype, str(shard.max_token_id))
        table.add_row(split, *counts, shard.bin_sha256[:16] + "…")
    console = Console()
    console.print(table)
    print_line(
        console, f"all sound; tokenizer {verified.tokenizer.num_pieces} pieces, {verified.tokenizer.sha256[:16]}…"
    )


def _with_filters(
    read: ReadOptions, quality: Iterable[str], test_sets: Iterable[Path], by: DecontaminateBy
) -> ReadOptions:
    from megadeberta.data_prep.decontamination import fingerprint

    return replace(read, quality=tuple(quality), test_sets=fingerprint(test_sets, read), decontaminate_by=by)


def plot_lengths(folder: Path, lengths: "np.ndarray") -> None:
    """Draw document lengths ``[D]`` into ``folder``; loads Pillow only now."""
    from megadeberta.data_prep import length_plot

    length_plot.plot_lengths(folder, lengths)


def _expected_scripts(values: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    from megadeberta.data_prep.scripts import check_scripts

    expected = parse_expected("--expect-script", values, example="Latin:0.9")
    check_scripts((name for name, _ in expected), "--expect-script")
    return expected


def _parse_part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--part={text}; give I/N, such as 2/8: this is machine 2 of 8")
    return int(number), int(count)


def closing_line(outcome: "Outcome", output: Path) -> str:
    """What was made, for the screen."""
    shards = {"train": outcome.train, "valid": outcome.valid}
    counts = "; ".join(
        f"{name} {shard.num_tokens:,} tokens in {shard.num_documents:,} documents"
        for name, shard in shards.items()
        if shard
    )
    if outcome.was_finished:
        return f"{output} was finished already: {counts}"
    megabytes = outcome.text_bytes / 1e6
    counts = counts or "a part of the corpus encoded"
    speed = megabytes / max(outcome.seconds, 1e-9)
    return f"{output}: {counts}; {megabytes:.1f} MB of text in {outcome.seconds:.1f} s ({speed:.1f} MB/s)"
