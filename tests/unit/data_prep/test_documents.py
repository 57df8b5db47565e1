"""Lines, cleaning and documents: what is kept, what is counted, and that nothing raises."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadeberta.data_prep import documents, lines
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Section
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.formats import plain_text
from megadeberta.data_prep.lines import read_lines
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sources import Source


def read(tmp_path: Path, payload: bytes, *, is_json: bool = False, **options: object) -> tuple[list[str], Tally]:
    path = tmp_path / "corpus"
    path.write_bytes(payload)
    tally = Tally()
    source = Source(path, path.name, "train", "jsonl" if is_json else "text", None, len(payload), 0)
    section = Section(0, path, 0, len(payload), 0)
    return list(read_documents(section, ReadOptions(**options), source=source, tally=tally)), tally


def test_what_normalisation_makes_long_is_cut_into_shorter_pieces(tmp_path: Path) -> None:
    # U+FDFA becomes 18 characters: at 4 Mi of them a tokenizer takes gigabytes.
    found, tally = read(tmp_path, b"first\n\n" + "\ufdfa".encode() * 500_000)
    assert found[0] == "first" and "".join(found[1:]) == "\ufdfa" * 500_000
    assert max(map(len, found)) <= (4 << 20) // 18 and tally.cut_documents == 2
    found, tally = read(tmp_path, ("é½" * 500_000).encode())
    assert len(found) == 1 and tally.cut_documents == 0


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert "  " not in once and once == once.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\t b \r\n", "a b"),
        ("a\u00a0b\u2003c\u3000d", "a b c d"),
        ("a\x07b\x1bc\x7f", "abc"),
        ("a \x00 b", "a b"),
        ("\ufeffa\ufeffb", "ab"),
        ("e\u0301 ﬁ ½ ｆｕｌｌ", "e\u0301 ﬁ ½ ｆｕｌｌ"),
        ("a\u200bb\u200d", "a\u200bb\u200d"),
        ("\x00\x01", ""),
    ],
)
def test_cleaning_removes_controls_and_collapses_spaces_only(text: str, expected: str) -> None:
    assert clean(text) == expected


@settings(max_examples=80, deadline=None)
@given(
    payload=st.lists(st.sampled_from([b"\n", b"a", b"bb", b"\xff", b"c" * 9]), max_size=40).map(b"".join),
    limit=st.integers(1, 12),
    chunk=st.integers(1, 7),
)
def test_lines_are_those_of_the_bytes_wherever_reads_end(payload: bytes, limit: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", chunk)
        found = list(read_lines(io.BytesIO(payload), max_bytes=limit))
    expected, offset = [], 0
    for number, raw in enumerate(payload.removesuffix(b"\n").split(b"\n") if payload else [], start=1):
        expected.append((number, offset, raw if len(raw) <= limit else None, len(raw)))
        offset += len(raw) + 1
    if payload.endswith(b"\n") and payload.strip(b"\n") == b"":
        expected = [(i + 1, i, b"", 0) for i in range(len(payload))]
    assert [tuple(line) for line in found] == expected


def test_documents_follow_the_chosen_unit(tmp_path: Path) -> None:
    payload = b"one\ntwo\n\n \t\nthree\n\x01\nfour\n"
    assert read(tmp_path, payload)[0] == ["one two", "three four"]
    assert read(tmp_path, payload, document_per=DocumentPer.LINE)[0] == ["one", "two", "three", "four"]
    assert read(tmp_path, payload, document_per=DocumentPer.FILE)[0] == ["one two three four"]
    assert read(tmp_path, payload, document_per=DocumentPer.LINE)[1].empty_documents == 1


def test_wikitext_titles_start_documents_and_lines_that_only_look_like_titles_do_not(tmp_path: Path) -> None:
    payload = (
        b" \n = First = \n \n Text . \n = = Section = = \n \n More , \n = Losses , D = \n Ties \n \n"
        b" = Second = \n \n Text of it . \n\n = alone at the end = "
    )
    found, _ = read(tmp_path, payload, document_per=DocumentPer.WIKITEXT)
    assert found == [
        "= First = Text . = = Section = = More , = Losses , D = Ties",
        "= Second = Text of it .",
        "= alone at the end =",
    ]


BAD_JSON = {
    "invalid_utf8": b'{"text": "\xff"}',
    "lone_surrogate": b'{"text": "\\ud800"}',
    "nul_byte": b'{"text": "a\\u0000b"}',
    "nesting_too_deep": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "number_too_long": b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
    "missing_key": b'{"txt": "a"}',
    "wrong_type": b'{"text": 3}',
    "invalid_json": b'{"text": "a"',
    "line_too_long": b'{"text": "' + b"a" * 300_000 + b'"}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_each_kind_of_bad_record_is_counted_at_its_place_and_left_out(tmp_path: Path, kind: str) -> None:
    payload = b'{"text": "good"}\n' + BAD_JSON[kind] + b'\n{"text": "after"}\n'
    found, tally = read(tmp_path, payload, is_json=True, max_line_bytes=250_000)
    assert found == ["good", "after"]
    assert tally.counts == {kind: 1}
    assert (tally.examples[kind].line, tally.examples[kind].offset) == (2, 17)
    assert tally.rejected == 1 and tally.lines == 3


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("invalid_utf8", b"a\xffb"),
        ("lone_surrogate", b"a\xed\xa0\x80"),
        ("nul_byte", b"a\0b"),
        ("line_too_long", b"a" * 2000),
    ],
)
def test_a_bad_line_of_plain_text_leaves_the_rest_of_its_document(tmp_path: Path, kind: str, raw: bytes) -> None:
    found, tally = read(tmp_path, b"before\n" + raw + b"\nafter\n\nnext\n", max_line_bytes=1024)
    assert found == ["before after", "next"]
    assert tally.counts == {kind: 1}
    assert (tally.examples[kind].line, tally.examples[kind].offset) == (2, 7)


def test_byte_order_marks_and_blank_lines_are_repaired_and_counted(tmp_path: Path) -> None:
    found, tally = read(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n\n  \r\n{"text": "b"}\r\n', is_json=True)
    assert found == ["a", "b"]
    assert tally.counts == {"byte_order_mark": 1, "blank_line": 2}
    assert tally.rejected == 0


def test_records_that_are_no_objects_and_other_keys(tmp_path: Path) -> None:
    found, tally = read(
        tmp_path, b'[1]\n"text"\n{"body": "x", "text": "y"}\n{"body": null}\n', is_json=True, text_keys=("body",)
    )
    assert found == ["x"]
    assert tally.counts == {"wrong_type": 3}
    assert tally.examples["wrong_type"].detail == "the record is a list"


@pytest.mark.parametrize("is_json", [False, True])
def test_ten_thousand_lines_of_random_bytes_raise_nothing(tmp_path: Path, is_json: bool) -> None:
    rng = np.random.default_rng(17)
    lines = [rng.bytes(int(rng.integers(0, 60))).replace(b"\n", b" ") for _ in range(10_000)]
    alphabet = [
        b'{"text": "',
        b'"}',
        b"[",
        b"{",
        b"1e999",
        b"\\ud8",
        b"\\u0000",
        b"null",
        b"a",
        b"\xc3\xa9",
        b"\xed\xb0\x80",
    ]
    lines[::2] = [b"".join(alphabet[i] for i in rng.integers(0, len(alphabet), 9)) for _ in range(5_000)]
    found, tally = read(tmp_path, b"\n".join(lines) + b"\n", is_json=is_json, document_per=DocumentPer.LINE)
    assert tally.lines == 10_000
    used = tally.documents + tally.empty_documents + tally.rejected + tally.counts.get("blank_line", 0)
    blank = 0 if is_json else sum(not line.strip() for line in lines)
    assert used + blank == 10_000
    assert tally.documents == len(found)
    for document in found:
        document.encode()


def test_a_document_longer_than_the_limit_is_cut_at_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (documents, plain_text):
        monkeypatch.setattr(module, "MAX_DOCUMENT_CHARACTERS", 50)
    words = [f"word{i}" for i in range(40)]
    for payload, is_json in (
        ("\n".join(words).encode(), False),
        (" ".join(words).encode(), False),
        (json.dumps({"text": " ".join(words)}).encode(), True),
    ):
        found, tally = read(tmp_path, payload, is_json=is_json)
        assert " ".join(found).split() == words
        assert len(found) > 3 and tally.cut_documents >= len(found) - 1
        assert max(map(len, found)) <= 60
    found, _ = read(tmp_path, b"x" * 120)
    assert found == ["x" * 50, "x" * 50, "x" * 20]
