"""One corpus in six formats: peak memory of `megadeberta prep` at 10 MB and whole, two parts against one machine.

    python benchmarks/six_formats.py FOLDER --megabytes 140 --vocab-size 128000

FOLDER holds plain text, plain or .gz, of any endings. Its paragraphs are written as text (.gz), JSON lines (.zst), CSV,
Parquet, WET and WikiExtractor's documents. Every run of `prep` finds exact and near duplicates; the vocabulary is
trained first, as its memory follows from the sample and not from the corpus.
"""

import argparse
import csv
import gzip
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import zstandard

SMALL = 10_000_000
_SHORTEST = 200
"""Characters: headings and table rows are no documents."""
_BLANK = re.compile(r"\n\s*\n")
_MAIN = "import sys; from megadeberta.cli import main; sys.exit(main())"
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Used:
    """What a command took: of memory the largest process, and all at once."""

    seconds: float
    largest_mebibytes: float
    all_mebibytes: float


def main() -> None:
    """Print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=140.0)
    parser.add_argument("--vocab-size", type=int, default=128_000)
    parser.add_argument("--tokenizer", type=Path, help="a vocabulary that is there; then none is trained")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        texts = list(paragraphs(arguments.folder, int(arguments.megabytes * 1e6)))
        small = list(islice(texts, max(1, len(texts) * SMALL // max(SMALL, sum(map(len, texts))))))
        for name, some in (("small", small), ("whole", texts)):
            write_corpus(work / name, some)
            size = sum(len(text.encode()) for text in some) / 1e6
            print(f"{name}: {size:.1f} MB of text, {len(some):,} documents, load {os.getloadavg()[0]:.1f}", flush=True)
        measure(work, arguments)


def measure(work: Path, arguments: argparse.Namespace) -> None:
    """All commands, one after another."""
    jobs = ("--workers", str(arguments.workers))
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        tokenizer = work / "v" / "tokenizer"
        made = ("-o", work / "v", "--vocab-size", arguments.vocab_size)
        show("vocabulary", run("prep", work / "whole", *made, *jobs))
    options = ("--tokenizer", tokenizer, "--deduplicate", "near", *jobs)
    small = run("prep", work / "small", "-o", work / "out-small", *options)
    show("prep, small", small)
    whole = run("prep", work / "whole", "-o", work / "out-whole", *options)
    show("prep, whole", whole)
    print(f"largest process: {whole.largest_mebibytes / small.largest_mebibytes:.2f} times that of the small corpus")
    parts = [work / f"part-{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        show(f"part {number} of 2", run("prep", work / "whole", "-o", part, "--part", f"{number}/2", *options))
    show("merge", run("data", "merge", *parts, "-o", work / "merged"))
    show("sample of 5 %", run("data", "sample", work / "out-whole", "--fraction", "0.05", "-o", work / "sample"))
    names = [f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("bin", "sum", "idx", "json")]
    differ = [name for name in names if digest(work / "merged" / name) != digest(work / "out-whole" / name)]
    print(f"merged parts and one machine: {'other bytes in ' + ', '.join(differ) if differ else 'the same bytes'}")


def paragraphs(folder: Path, limit: int) -> Iterator[str]:
    """Runs of lines up to a blank one, one line each, until they are ``limit`` characters."""
    taken = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        opener = gzip.open if path.read_bytes()[:2] == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8", errors="ignore") as file:
            content = file.read().replace("\0", "")
        for paragraph in _BLANK.split(content):
            text = " ".join(paragraph.split())
            if len(text) >= _SHORTEST:
                yield text
                taken += len(text)
                if taken >= limit:
                    return


def write_corpus(folder: Path, texts: list[str]) -> None:
    """Every sixth document to each format."""
    folder.mkdir()
    parts = [texts[number::6] for number in range(6)]
    (folder / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(parts[0]).encode(), 6))
    lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(parts[1]))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    rows = io.StringIO()
    csv.writer(rows).writerows([("id", "text"), *enumerate(parts[2])])
    (folder / "c.csv").write_text(rows.getvalue(), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": parts[3]}), folder / "d.parquet", row_group_size=1000)
    (folder / "e.warc.wet.gz").write_bytes(gzip.compress(b"".join(map(wet_record, parts[4])), 6))
    documents = (
        f'<doc id="{number}" url="" title="{number}">\n{number}\n\n{html.escape(text, quote=False)}\n</doc>\n'
        for number, text in enumerate(parts[5])
    )
    (folder / "wiki_00").write_text("".join(documents), encoding="utf-8")


def wet_record(text: str) -> bytes:
    """A page as Common Crawl stores its text."""
    content = text.encode()
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n\r\n"


def run(*arguments: object) -> Used:
    """A command of megadeberta, its memory looked at while it runs."""
    began, largest, most = time.monotonic(), 0, 0
    command = [sys.executable, "-c", _MAIN, *map(str, arguments)]
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = [resident(one) for one in (root, *children(root))]
            largest, most = max(largest, *sizes), max(most, sum(sizes))
            time.sleep(_LOOK_SECONDS)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, arguments))}: {errors.read().decode()[-600:]}")
    return Used(time.monotonic() - began, largest / 2**20, most / 2**20)


def children(root: psutil.Process) -> list[psutil.Process]:
    """Of a process that may be gone."""
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    """Bytes in memory; 0 of one that is gone."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show(name: str, used: Used) -> None:
    """One row."""
    print(
        f"{name:14} {used.seconds:7.1f} s, largest process {used.largest_mebibytes:6.0f} MiB, "
        f"all {used.all_mebibytes:6.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
