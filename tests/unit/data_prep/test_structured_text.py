"""Text that is no prose, under names that do not say so: refused by what it is, or read as the records it holds."""

import base64
import binascii
import bz2
import gzip
import io
import json
import lzma
import quopri
import random
import re
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
import zstandard

from megadeberta.data_prep.detect import HEAD_BYTES, Refusal, detect
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.sources import find_sources
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU

SENTENCES = [
    f"Sentence {number} of the report, which is prose; it has marks: a <b>, 3|4 and a tab." for number in range(40)
]


def lines(form: str) -> bytes:
    return "".join(form.format(n=number, s=sentence) + "\n" for number, sentence in enumerate(SENTENCES)).encode()


def old_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"text\n"))
    header = bytearray(out.getvalue()[:512])
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + out.getvalue()[512:]


REFUSED = {
    "json strings": (lines('"{s}"'), "a file of JSON values without keys"),
    "json lists": (b"rows\n" + lines('["{s}"]'), "a file of JSON values without keys"),
    "python records": (lines("{{'id': {n}, 'text': '{s}'}}"), "a file of records as Python prints them"),
    "fragments of HTML": (lines("<div class='post'><p>{s}</p></div>"), "HTML or XML without a head"),
    "HTML after a comment": (b"<!-- saved -->\n<html>\n<p>text</p>\n", "HTML"),
    "a part of a dump": (lines("<page>\n<title>T{n}</title>\n<text>{s}</text>\n</page>"), "HTML or XML without a head"),
    "SGML of Gigaword": (lines('<DOC id="A{n}" type="story" >\n<P>\n{s}\n</P>\n</DOC>'), "HTML or XML without a head"),
    "tabs without a header": (lines("{n}\tTitle {n}\t{s}"), "a table"),
    "two columns": (lines("{n}\t{s}"), "a table"),
    "CSV of other names": (b"id,title,body\n" + lines('{n},Title {n},"{s}"'), "a table"),
    "CoNLL-U": (
        lines("# sent_id = {n}\n1\tThe\tthe\tDET\n2\tend\tend\tNOUN\n3\tis\tbe\tVERB\n4\tit\tit\tPRON\n"),
        "a table",
    ),
    "subtitles": (lines("{n}\n00:00:{n:02d},000 --> 00:00:{n:02d},900\n{s}\n"), "a file of subtitles"),
    "WebVTT": (b"WEBVTT\n\n" + lines("00:{n:02d}.000 --> 00:{n:02d}.900\n{s}\n"), "a file of subtitles"),
    "SQL": (b"CREATE TABLE t (id int);\n" + lines("INSERT INTO t VALUES ({n}, '{s}');"), "an SQL dump"),
    "dump of PostgreSQL": (b"--\n-- PostgreSQL database dump\n--\n\nSET x = 0;\n", "an SQL dump"),
    "a mailbox": (lines("From a@b Mon Jan  1 00:00:{n:02d} 2020\nSubject: {n}\n\n{s}\n"), "a mailbox"),
    "RTF": (b"{\\rtf1\\ansi\n" + lines("{s}\\par"), "rich text"),
    "PostScript": (b"%!PS-Adobe-3.0\n" + lines("({s}) show"), "PostScript"),
    "ISO-2022": ("\u3059\u3079\u3066\u306e\u4eba\u9593".encode("iso2022_jp"), "ISO-2022 text"),
    "UTF-32": ("text of it".encode("utf-32"), "UTF-32"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    "Avro": (b"Obj\x01\x04\x14avro.codec" + lines("{s}"), "Avro"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(range(256)), "compressed with lz4"),
    "cpio": (b"070701" + b"0" * 104 + lines("{s}"), "a cpio archive"),
    "ar": (b"!<arch>\na.txt/          0           0     0     644     4         `\n" + lines("{s}"), "an ar archive"),
    "compress": (b"\x1f\x9d\x90" + lines("{s}"), "compressed with compress"),
    "encrypted": (b"PARE" + bytes(100), "encrypted Parquet"),
    "base64": (base64.encodebytes(lines("{s}")), "letters without spaces"),
    "base64 in one line": (base64.b64encode(lines("{s}")), "letters without spaces"),
    "percent": (quote(lines("{s}")).encode(), "letters without spaces"),
    "UTF-7": (("\u3059\u3079\u3066\u306e\u4eba\u9593" * 300).encode("utf-7"), "letters without spaces"),
    "hex": (lines("{s}").hex().encode(), "letters without spaces"),
    "hex dump": (re.sub(rb"(.{47}) ", rb"\1\n", lines("{s}").hex(" ").encode()), "a hex dump"),
    "quoted-printable": (quopri.encodestring(lines("{s} \u00e9t\u00e9")), "quoted-printable text"),
    "uuencode": (b"begin 644 a.txt\n" + binascii.b2a_uu(b"text of a few words") + b"`\nend\n", "uuencoded data"),
    "e-mail": (b"From: a@b.c\nSubject: text\n of two lines\nMIME-Version: 1.0\n\n" + lines("{s}"), "an e-mail message"),
    "a log": (lines("2024-05-01 12:00:{n:02d},003 INFO worker: {s}"), "a log"),
    "a log of long lines": (lines("2024-05-01 12:00:{n:02d} INFO {s} {s} {s} {s} {s} {s}"), "a log"),
    "a log of levels": (lines("WARNING:root:{s}"), "a log"),
    "syslog": (lines("May  1 12:00:{n:02d} host cron[{n}]: {s}"), "a log"),
    "a kernel's log": (lines("[    {n}.000000] usb {n}: {s}"), "a log"),
    "a web server's log": (lines('192.0.2.7 - - [01/May/2024:12:00:{n:02d} +0000] "GET /{n}"'), "a log"),
    "a log with a trace": (lines("2024-05-01T12:00:{n:02d}Z ERROR {s}\n  at f (a.js:{n})"), "a log"),
    "a terminal": (lines("\x1b[32mok\x1b[0m {n} {s}"), "a capture of a terminal"),
    "a terminal of tput": (lines("\x1b[1mok\x1b(B\x1b[m {s}"), "a capture of a terminal"),
    "YAML": (lines("job{n}:\n  image: python\n  steps:\n    - run: make {n}\n    - name: it"), "YAML"),
    "flat YAML": (b"---\nname: a\nversion: 1.0\nlicense: MIT\nauthor: me\nmain: a.js\n", "YAML"),
    "INI": (lines("[section {n}]\n; why\nkey{n} = some value\nother=1"), "a file of settings"),
    "TOML": (b'[tool]\nname = "a"\nlist = [1, 2]\n[[of.many]]\na.b = 1\nc = "d"\n', "a file of settings"),
    "environment": (lines("export NAME_{n}={n}"), "a file of settings"),
    "random bytes": (random.Random(0).randbytes(HEAD_BYTES), "binary data"),
    "packed twice": (gzip.compress(lines("{s}")), "gzip data within compressed data"),
    "carriage returns": (lines("{s}").replace(b"\n", b"\r"), "text whose lines end in a carriage return alone"),
    "records and carriage returns": (
        lines('{{"text": "{s}"}}').replace(b"\n", b"\r"),
        "text whose lines end in a carriage",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_prose_is_refused_by_name_with_a_remedy(kind: str) -> None:
    head, what = REFUSED[kind]
    found = detect(head, ending=".txt", text_keys=("text",))
    assert isinstance(found, Refusal) and found.what.startswith(what)
    assert found.remedy or what == "binary data"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"# exported on Monday\n" + lines('{{"text": "{s}"}}'), "jsonl"),
        (lines("{s}"), "text"),
        (lines("<b>Note</b> {n}") + lines("{s}") * 2, "text"),  # prose with some markup
        (lines("Apples {n}, pears, plums"), "text"),  # equally many commas, as prose writes them
        (lines("\t{s}"), "text"),  # indented
        (lines("First half of {n}\tsecond half {s}"), "text"),
        (lines("HAMLET: {s}\n\nOPHELIA: My lord?"), "text"),
        (lines("user: {s}\nassistant: Yes."), "text"),
        (lines("word{n}: {s}"), "text"),  # a glossary
        (lines("Ingredients:\n  - {n} eggs\n  - some flour\n  - a little salt\nSteps:\n  - {s}"), "text"),
        (lines("---\ntitle: It\n---\n\n{s}\n\n{s}\n\n{s}\n\n{s}\n\n{s}\n"), "text"),
        (lines("Let x = {n}.\n\n{s}"), "text"),
        (lines("# Heading {n}\n\n{s}\n\n    key = value\n"), "text"),
        (lines("[12:{n:02d}] <anna> {s}"), "text"),  # people who talk
        (lines("{n:04d}-05-01  A. Person  <a@b.c>\n\n\t* {s}"), "text"),  # a history of changes
        (lines("WARNING: {s}\n{s}\n{s}"), "text"),
        (b"\x1b[1mA title\x1b[0m\n" + lines("{s}"), "text"),
        (b"<unk> said\n" * 9, "text"),  # marks of a tokenizer, none of them closed
        (lines("{n} a: <b>{s}"), "text"),
        (b"id,text\r1,a\r2,b\r3,c\r", "csv"),
        (b"The Deck. Ahab\n" + lines('"{s}"'), "text"),  # a chapter of nothing but dialogue
        (lines('"{s}"\n'), "text"),
        (b"", "text"),
        (b"\n\n\n", "text"),
        (b"one line\rwith a mark", "text"),
        (SOTU.read_bytes()[:HEAD_BYTES], "text"),
        (old_tar(), "tar"),
        (b"begin 2024 with\nmany words\n" + lines("{s}"), "text"),
        (b"Title: A Report\nAuthor: A\n\n" + lines("{s}"), "text"),
        (lines("Donaudampfschifffahrtsgesellschaftskapitaen {n}"), "text"),
        (("\u4eba\u4eba\u751f\u800c\u81ea\u7531" * 400).encode(), "text"),
    ],
)
def test_prose_and_known_formats_are_told_from_it(head: bytes, name: str) -> None:
    found = detect(head, ending=".csv" if name == "csv" else ".txt", text_keys=("text",))
    assert not isinstance(found, Refusal), found
    assert found.name == name


def test_documentation_with_markup_beside_records_does_not_stop(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(lines("<p>{s}</p>"))
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": "x"}).encode() + b"\n")
    corpus = find_sources([tmp_path], split="train", options=ReadOptions(), outside=tmp_path / "out")
    assert [source.format_name for source in corpus.sources] == ["jsonl"]
    assert [file.reason for file in corpus.passed_over] == ["documentation beside the data"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt.gz"])
def test_a_pointer_of_git_lfs_is_named_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(REFUSED["Git LFS"][0])
    with pytest.raises(DataError, match=r"is a pointer of Git LFS and not the file itself; fetch it: git lfs pull"):
        find_sources([tmp_path / name], split="train", options=ReadOptions(), outside=tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_a_table_under_a_compressed_name_is_refused_too(tmp_path: Path, pack: object) -> None:
    (tmp_path / "a.txt.x").write_bytes(pack(lines("{n}\t{s}")))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"is a table without a column of the text's name; .* --format=text"):
        find_sources([tmp_path / "a.txt.x"], split="train", options=ReadOptions(), outside=tmp_path / "out")
    options = ReadOptions(input_format="text")
    assert find_sources([tmp_path / "a.txt.x"], split="train", options=options, outside=tmp_path / "out").sources
