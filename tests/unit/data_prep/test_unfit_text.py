"""Values of records and paragraphs that are no prose: named with their share, refused where they are too many."""

import base64
import csv
import html
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from megadeberta.data_prep import first_look, work
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.options import PrepOptions, ReadOptions, SplitOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.unfit_text import KINDS, kind_of
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU

LETTERS = "abcdefghijklmnopqrstuvwxyzäöüßéèабвгд人们生而自由"


def prose(seed: int) -> str:
    """Words of made-up letters: drawing each by hypothesis is slow."""
    draw = random.Random(seed)
    words = ("".join(draw.choices(LETTERS, k=draw.randint(1, 9))) for _ in range(draw.randint(30, 60)))
    return " ".join(words) + "."


HTML, JSON, PYTHON, SQL, LOG, BASE64, TERMINAL, REPLACED, TWICE = KINDS

BROKEN: dict[str, Callable[[str], str]] = {
    HTML: lambda text: f"<div class='post'>\n<p>{text}</p>\n</div>",
    JSON: lambda text: json.dumps({"body": text, "id": 7}),
    PYTHON: lambda text: repr({"body": text, "id": 7}),
    SQL: lambda text: f"INSERT INTO posts VALUES (1, '{text}');",
    LOG: lambda text: "".join(f"2024-05-01 12:00:{n:02d},123 INFO {word}\n" for n, word in enumerate(text.split())),
    BASE64: lambda text: base64.encodebytes(text.encode()).decode(),
    TERMINAL: lambda text: "".join(f"\x1b[1;32m{word}\x1b[0m " for word in text.split()),
    REPLACED: lambda text: ("é " + text).encode("cp1251", "replace").decode("utf-8", "replace") + "\ufffd",
    TWICE: lambda text: ("Für schöne Äpfel, größer “ja” " + text).encode().decode("latin-1"),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.integers(0, 2**32).map(prose))
def test_every_kind_is_told_from_the_prose_that_it_was_made_of(kind: str, text: str) -> None:
    assert kind_of(clean(text)) is None
    assert kind_of(clean(BROKEN[kind](text))) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (html.escape("<p>Words of it.</p><p>And more of them.</p>"), HTML),
        ("Words <p>of it.</p> <a href='x'>a</a> <b>c</b> <i>d</i> <u>e</u> <br/> <b>f</b> end", HTML),
        (json.dumps([{"role": "user", "content": "words"}]), JSON),
        (json.dumps(json.dumps({"text": "words"})), JSON),
        ('{"text": "cut off in the mid', JSON),
        ("[1, 2, 3]", JSON),
        ("<!-- saved -->\n<!DOCTYPE html>\n<html><head><title>It</title></head><body>Words of it.", HTML),
        ("<?xml version='1.0'?> <a>Words of it.", HTML),
        (base64.b64encode(b"A short sentence of it.").decode(), BASE64),
        (base64.b85encode(SOTU.read_bytes()[:200]).decode(), BASE64),
        ("data:image/png;base64," + base64.b64encode(SOTU.read_bytes()[:200]).decode(), BASE64),
        (bytes(range(40)).hex(), BASE64),
        ('192.0.2.1 - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 2326', LOG),
        ("Jan  5 10:00:01 host sshd[1]: Accepted key Jan  5 10:00:02 host sshd[1]: Closed", LOG),
        ("Ð\x9fÑ\x80Ð¸Ð²ÐµÑ\x82 Ð²Ñ\x81ÐµÐ¼", TWICE),
    ],
)
def test_other_forms_of_a_kind(text: str, kind: str) -> None:
    assert kind_of(clean(text)) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One line.",
        "I liked it.<br /><br />The actors were good, and <i>so</i> was the music of it, from start to end.",
        "Use vector<int> and map<string>, then call f<T>() [1]; `#include <stdio.h>` comes first {see below}.",
        '{curly} braces and [square] ones, "quoted" too.',
        "[1] The first note. [2] The second.",
        "See https://example.org/" + "a/long/path/" * 20 + " for it",
        "In gcc/testsuite/gcc.dg/tree-ssa/pr12345/some-long-name/of-a-file.c: New test.",
        "Rindfleischetikettierungsueberwachungsaufgabenuebertragungsgesetz"[:47] + " hiess es",
        "https://example.org/" + "a1B2" * 30 + " is its address",
        "=" * 80 + " Title " + "=" * 80,
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft hieß sie",
        "人人生而自由，在尊严和权利上一律平等。" * 30,
        "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ" * 9,
        "Ã, Â and É are letters; «É»! «Liberté» – «égalité» – «voilà»! São João não é Ílhavo, à Évora. Œuvre, ÂGE.",
        "Một câu tiếng Việt: Tất cả mọi người sinh ra đều được tự do và bình đẳng.",
        "On 2024-05-01 12:00:00 the meeting began. " + SOTU.read_text(encoding="utf-8")[:2000],
        "ERROR: cannot open. That line was all. " + SOTU.read_text(encoding="utf-8")[:2000],
        "x < y and y > z, so </ is no tag; 5 < 6 > 4.",
    ],
)
def test_prose_stays_prose(text: str) -> None:
    assert kind_of(clean(text)) is None


@pytest.mark.parametrize("path", ["docs/formats.md", "docs/architecture.md", "README.md", "CHANGELOG.md"])
def test_pages_with_code_and_tables_are_prose_by_far(path: str) -> None:
    paragraphs = (Path(__file__).parents[3] / path).read_text(encoding="utf-8").split("\n\n")
    assert sum(len(text) for text in paragraphs if kind_of(clean(text))) < 0.05 * sum(map(len, paragraphs))


def write(folder: Path, texts: list[str], form: str) -> Path:
    path = folder / f"corpus.{form}"
    if form == "txt":
        path.write_text("A line of prose to begin with.\n\n" * 400 + "\n\n".join(texts), encoding="utf-8")
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": texts}), path)
    return path


def run(output: Path, prepared: Path, *corpora: Path, input_format: str = "auto") -> str:
    """What a preparation prints."""
    console = Console(record=True, file=(output.parent / "screen").open("w"), width=1000)
    vocabulary = VocabularyOptions(tokenizer=prepared / "tokenizer" / "spm.model")
    options = PrepOptions(
        corpora,
        output,
        vocabulary,
        read=ReadOptions(input_format=input_format),
        split=SplitOptions(fraction=0),
        max_unknown_fraction=1,
    )
    prepare(options, console=console, plot=lambda folder, lengths: None)
    return console.export_text()


SPEECH = SOTU.read_text(encoding="utf-8").split("\n\n")
PAGES = [BROKEN[HTML](text) for text in SPEECH]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "txt"])
def test_values_of_any_format_are_refused_with_share_example_and_remedy(
    tmp_path: Path, prepared: Path, form: str
) -> None:
    corpus = write(tmp_path, PAGES, form)
    share = r"100.0%" if form != "txt" else r"9\d.\d%"
    with pytest.raises(
        DataError,
        match=rf"^{share} of the text is HTML or XML, first in corpus.{form}: \"<div class='post'> <p>.*; extract its "
        rf"text first .*; --format={'text' if form == 'txt' else form} reads it as it stands$",
    ):
        run(tmp_path / "out", prepared, corpus)
    assert not (tmp_path / "out" / "train.json").exists()
    screen = run(tmp_path / "out", prepared, corpus, input_format="text" if form == "txt" else form)
    assert "of the text is HTML or XML, first in corpus" in screen  # said even so
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus"]["unfit"][HTML]["fraction"] > 0.9


def test_a_few_are_said_and_damage_is_borne_less(tmp_path: Path, prepared: Path) -> None:
    tenth = len(SPEECH) // 5
    screen = run(tmp_path / "a", prepared, write(tmp_path, PAGES[:tenth] + SPEECH[tenth:], "jsonl"))
    assert "% of the text is HTML or XML, first in corpus.jsonl" in screen
    lost = [text.replace("e", "\ufffd") for text in SPEECH[:tenth]]
    with pytest.raises(DataError, match=r"% of the text is text with U\+FFFD .*; read the original again with its own"):
        run(tmp_path / "b", prepared, write(tmp_path, lost + SPEECH[tenth:], "jsonl"))


def test_a_large_corpus_of_it_stops_before_it_is_encoded(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    monkeypatch.setattr(first_look, "WORTH_A_LOOK", 1 << 10)
    monkeypatch.setattr(work, "encode_block", lambda context, block: encoded.append(block.number))
    with pytest.raises(
        DataError, match=r"^at \d+ places of the corpus, before it is encoded: 100.0% of the text is JSON"
    ):
        run(tmp_path / "out", prepared, write(tmp_path, [BROKEN[JSON](text) for text in SPEECH * 4], "jsonl"))
    assert not encoded
