"""A corpus of plain text written in six formats, for six_formats.py."""

import csv
import gzip
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard

_SHORTEST = 200
"""Characters of a document: headings and table rows are joined with what follows."""
_BLANK = re.compile(r"\n\s*\n")


def read_sources(folder: Path) -> dict[str, list[str]]:
    """The documents of every folder in ``folder``, by its name; of ``folder`` itself if it has none."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) or [folder]
    return {path.name: list(documents(path)) for path in folders}


def documents(folder: Path) -> Iterator[str]:
    """Runs of paragraphs of at least 200 characters, one line each; a file is plain text, plain or .gz."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        opener = gzip.open if path.read_bytes()[:2] == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8", errors="ignore") as file:
            content = file.read().replace("\0", "")
        held: list[str] = []
        for paragraph in _BLANK.split(content):
            held += paragraph.split()
            text = " ".join(held)
            if len(text) >= _SHORTEST:
                yield text
                held = []


def of_size(sources: dict[str, list[str]], size: int) -> dict[str, list[str]]:
    """About ``size`` bytes of text: documents evenly chosen, or all and then those with their words reversed.

    A document that is read backwards shares no run of words with the one it was made from, so that it stays as it is
    in size, in words and in being no near duplicate.
    """
    have = size_of(sources)
    if size < have:
        return {name: _evenly(texts, size / have) for name, texts in sources.items()}
    more = {name: _evenly(texts, min(1.0, size / have - 1)) for name, texts in sources.items()}
    return {name: texts + [" ".join(reversed(text.split())) for text in more[name]] for name, texts in sources.items()}


def _evenly(texts: list[str], fraction: float) -> list[str]:
    return [texts[int(place / fraction)] for place in range(int(len(texts) * fraction))]


def size_of(sources: dict[str, list[str]]) -> int:
    """Bytes of text."""
    return sum(len(text.encode()) for texts in sources.values() for text in texts)


def write_corpus(folder: Path, sources: dict[str, list[str]]) -> list[Path]:
    """A folder per source, and every sixth of its documents in each format."""
    for name, texts in sources.items():
        write_source(folder / name, texts)
    return [folder / name for name in sources]


def write_source(folder: Path, texts: list[str]) -> None:
    """Text (.gz), JSON lines (.zst), CSV, Parquet, WET (.gz) and WikiExtractor's documents."""
    folder.mkdir(parents=True)
    parts = [texts[number::6] for number in range(6)]
    (folder / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(parts[0]).encode(), 6))
    lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(parts[1]))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    rows = io.StringIO()
    csv.writer(rows).writerows([("id", "text"), *enumerate(parts[2])])
    (folder / "c.csv").write_text(rows.getvalue(), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": parts[3]}), folder / "d.parquet", row_group_size=1000)
    (folder / "e.warc.wet.gz").write_bytes(gzip.compress(b"".join(map(wet_record, parts[4])), 6))
    pages = (
        f'<doc id="{number}" url="" title="{number}">\n{number}\n\n{html.escape(text, quote=False)}\n</doc>\n'
        for number, text in enumerate(parts[5])
    )
    (folder / "wiki_00").write_text("".join(pages), encoding="utf-8")


def wet_record(text: str) -> bytes:
    """A page as Common Crawl stores its text."""
    content = text.encode()
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n\r\n"
