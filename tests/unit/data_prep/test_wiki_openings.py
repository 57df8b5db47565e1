"""Articles whose markup would be read over and over: left out before the parser sees them."""

import io
from xml.sax.saxutils import escape

import mwparserfromhell
import pytest

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.detect import Refusal, detect
from megadeberta.data_prep.formats.wiki_openings import count_unclosed, is_readable
from megadeberta.data_prep.formats.wikipedia import WIKIPEDIA
from megadeberta.data_prep.options import ReadOptions

OPENINGS = (
    *("[http://", "[//a ", "[mailto:", "[[", "[[a|", "{{a|", "{{a|b=", "{{{a|", "[[a|{{b|", "{{a|[http://", "{|\n"),
    *("<ref>", "<b>", "<ref name=", "<a href='", "<br ", "<!--", "<nowiki>", "<math>", "<div><span>", "</b"),
)
ARTICLE = """{{Infobox|a=1|b=|}} '''A''' is [[b|c]], [[File:x.png|with [[d]]]] see [http://e f]<ref name="g">x</ref>
{| class="wikitable"
|-
| i || {{j|k={{{l|}}}}} <br> <ref name="g"/>
|}
<!-- m --> <small>n</small> 1 < 2 &lt; 3 <li> o [p] [[q]]s"""


def dump(*articles: str) -> io.BytesIO:
    pages = (
        f"<page><title>T</title><ns>0</ns><revision><text>{escape(text)}</text></revision></page>" for text in articles
    )
    return io.BytesIO(f"<mediawiki>{''.join(pages)}</mediawiki>".encode())


@pytest.mark.parametrize("opening", OPENINGS)
def test_20000_openings_that_nothing_closes_never_reach_the_parser(
    opening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = mwparserfromhell.parse
    monkeypatch.setattr(mwparserfromhell, "parse", lambda markup: parsed.append(markup) or parse(markup))
    tally = Tally()
    hostile = "Text. " + opening * 20_000
    texts = list(WIKIPEDIA.texts(dump("First.", hostile, "Last."), ReadOptions(), tally))
    assert texts == ["First.", "Last."] and parsed == ["First.", "Last."]
    assert tally.counts == {"markup_broken": 1} and tally.rejected_bytes == len(hostile)
    assert "T: " in tally.examples["markup_broken"].detail


def test_what_is_closed_does_not_count() -> None:
    assert count_unclosed(ARTICLE * 100) == 0 and is_readable(ARTICLE * 3000)
    assert count_unclosed("{{a|" * 5 + "}}" * 3 + "<b><i></b>") == 3
    assert count_unclosed("<div><span>" * 3000 + "</span></div>" * 3000) > 5000


def test_a_few_openings_without_an_end_are_read_as_before() -> None:
    texts = list(WIKIPEDIA.texts(dump("One [http://a two {{b three. " * 20), ReadOptions(), Tally()))
    assert len(texts) == 1 and texts[0].startswith("One") and "three." in texts[0]


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("-- " * 20_000, None),
        ("-- comment\n--\n\n-- MySQL dump 10.13\nCREATE", "an SQL dump"),
        ("-- PostgreSQL database dump\n", "an SQL dump"),
        ("From a 00:00:00" * 4000, None),
        ("From a@b Mon Jan 1 10:00:00 2020\nSubject: x\n\ntext\n", "a mailbox"),
        ("<!-- " * 13_000, None),
        ('{" ' * 21_000, None),
        ("a: b c\n b\n" * 6_000, None),
    ],
)
def test_the_first_bytes_of_a_file_are_told_in_one_pass(head: str, found: str | None) -> None:
    # Some of these were read for longer than anybody waits.
    what = detect(head.encode(), ending=".txt", text_keys=("text",))
    assert (what.what if isinstance(what, Refusal) else None) == found
