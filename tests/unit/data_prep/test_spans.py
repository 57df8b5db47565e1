"""Text that is read in spans gives what the same text read line by line gives, wherever spans end."""

import io
import random

import pytest

import megadeberta.data_prep.formats.spans
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.formats import json_lines, plain_text
from megadeberta.data_prep.formats.json_lines import JSON_LINES
from megadeberta.data_prep.formats.plain_text import TEXT
from megadeberta.data_prep.lines import read_lines
from megadeberta.data_prep.options import DocumentPer, ReadOptions

_USUAL = [
    b"a few words",
    b" and more",
    b"  ",
    b"\n",
    b"\n",
    b"\n\n",
    b" \n \n",
    b"caf\xc3\xa9 \xe2\x80\x94 ",
    b"\t\r\n",
]
_TITLES = [b" = A title = \n", b"\n \n = Another = \n \n", b"\n\n = = A section = = \n\n", b" = no blank = \nline\n"]
_ODD = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x07\n",
    b"\x85 \xc2\x85",
    b"w" * 1100,
]
_RECORDS = [
    b'{"text": "one"}\n',
    b'{"text": " two\\n words "}\n',
    b'{"text": ""}\n',
    b"\n",
    b"  \t\n",
    b'{"text": "open"}',
]
_ODD_RECORDS = [
    b'{"text": 3}\n',
    b'{"no": "text"}\n',
    b"[]\n",
    b"not\n",
    b'{"text": "\\ud800"}\n',
    b'{"text": "\\u0000"}\n',
]


def streams(pieces: list[bytes], odd: list[bytes], seed: int) -> list[bytes]:
    """Many short streams, most of them without anything odd."""
    generator = random.Random(seed)
    made = []
    for number in range(150):
        chosen = pieces + (odd if number % 3 == 0 else [])
        made.append(b"".join(generator.choice(chosen) for _ in range(generator.randrange(40))))
    return made


@pytest.fixture(params=[5, 64, 1 << 20])
def _small_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that end nearly everywhere, documents longer than a span, and whole streams."""
    monkeypatch.setattr(megadeberta.data_prep.formats.spans, "_CHUNK", request.param)
    monkeypatch.setattr(megadeberta.data_prep.formats.spans, "_LONGEST", 16 * request.param)
    monkeypatch.setattr(megadeberta.data_prep.formats.spans, "_TAIL", 8)


@pytest.mark.usefixtures("_small_spans")
@pytest.mark.parametrize("per", list(DocumentPer))
def test_documents_of_plain_text(per: DocumentPer) -> None:
    options = ReadOptions(per, max_line_bytes=1024)
    for stream in streams(_USUAL + _TITLES, _ODD, seed=1):
        in_spans, by_lines = Tally(), Tally()
        found = list(TEXT.texts(io.BytesIO(stream), options, in_spans))
        lines = read_lines(io.BytesIO(stream), max_bytes=options.max_line_bytes)
        assert found == list(plain_text._texts_of_lines(lines, options, by_lines)), stream
        assert in_spans.to_json() == by_lines.to_json(), stream


@pytest.mark.usefixtures("_small_spans")
def test_json_lines() -> None:
    options = ReadOptions()
    for stream in streams(_RECORDS, _ODD + _ODD_RECORDS, seed=2):
        in_spans, by_lines = Tally(), Tally()
        found = list(JSON_LINES.texts(io.BytesIO(stream), options, in_spans))
        lines = read_lines(io.BytesIO(stream), max_bytes=options.max_line_bytes)
        assert found == list(json_lines._texts_of_lines(lines, options, by_lines)), stream
        assert in_spans.to_json() == by_lines.to_json(), stream


def test_a_long_document_is_cut_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "MAX_DOCUMENT_CHARACTERS", 50)
    stream = b"some words of text\n" * 9 + b"\nshort\n\n" + b"x" * 70
    for per in DocumentPer:
        options, in_spans, by_lines = ReadOptions(per), Tally(), Tally()
        found = list(TEXT.texts(io.BytesIO(stream), options, in_spans))
        lines = read_lines(io.BytesIO(stream), max_bytes=options.max_line_bytes)
        assert found == list(plain_text._texts_of_lines(lines, options, by_lines))
        assert in_spans.to_json() == by_lines.to_json()
        assert in_spans.cut_documents > 0 or per is DocumentPer.LINE
