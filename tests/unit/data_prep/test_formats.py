"""Every format of input: the same documents come out, whatever they are kept in, and nothing is read as another."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megadeberta.data_prep.bad_lines import CorpusTally, Tally
from megadeberta.data_prep.blocks import BlockCutter
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import DocumentPer, ReadOptions, UnreadablePolicy
from megadeberta.data_prep.sources import Corpus, find_sources
from megadeberta.errors import ConfigError, DataError

DOCUMENTS = [f'Document {i}, "quoted",\tof several words: déjà vu, 日本語 {i * 7919}' for i in range(300)]
CLEAN = [" ".join(document.split()) for document in DOCUMENTS]
BY_LINE = ReadOptions(document_per=DocumentPer.LINE)
TAR = ReadOptions(document_per=DocumentPer.LINE, input_format="tar")


def as_text(documents: list[str]) -> bytes:
    return "\n".join(documents).encode() + b"\n"


def as_json(documents: list[str], **more: object) -> bytes:
    return b"".join(json.dumps({"id": i, "text": d, **more}).encode() + b"\n" for i, d in enumerate(documents))


def as_table(documents: list[str], *, delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    rows = csv.writer(out, delimiter=delimiter)
    rows.writerows([("id", "text"), *((i, f"{d}\nsecond line") for i, d in enumerate(documents))])
    return out.getvalue().encode()


def as_parquet(documents: list[str]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table({"id": range(len(documents)), "text": documents, "meta": [{"lang": "fr"}] * len(documents)})
    pyarrow.parquet.write_table(table, out, row_group_size=64)
    return out.getvalue()


def as_arrow(documents: list[str], *, open_writer: Callable[..., Any]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table({"text": documents})
    with open_writer(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return out.getvalue()


def as_wet(documents: list[str]) -> bytes:
    info = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 8\r\n\r\nsoftware\r\n\r\n"
    records = []
    for document in documents:
        raw = document.encode()
        records.append(
            b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x.example/\r\nContent-Type: text/plain\r\n"
            b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(raw), raw)
        )
    return info + b"".join(records)


def as_wikiextractor(documents: list[str]) -> bytes:
    return b"".join(
        f'<doc id="{i}" url="https://x.example" title="T">\n{d}\n\n</doc>\n'.encode() for i, d in enumerate(documents)
    )


def as_tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, payload in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return out.getvalue()


def read(
    path: Path, options: ReadOptions, spool: Path, *, block_bytes: int = 4000, whole_bytes: int = 0
) -> tuple[list[str], CorpusTally, Corpus]:
    """Documents of a file or folder, cut into small blocks, with the joined tally."""
    spool.mkdir(exist_ok=True)
    corpus = find_sources([path], split="train", options=options, outside=spool)
    cutter = BlockCutter(corpus.sources, options, block_bytes=block_bytes, whole_bytes=whole_bytes, spool=spool)
    found, whole = [], CorpusTally([source.name for source in corpus.sources])
    for block in cutter:
        for section in block.sections:
            tally = Tally()
            found += read_documents(section, options, source=corpus.sources[section.source], tally=tally)
            whole.add(section.source, tally)
    for source, damage in cutter.damage.items():
        whole.add(source, damage)
    return found, whole, corpus


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "text": ("a.txt", as_text(DOCUMENTS), CLEAN),
    "text without an ending": ("corpus", as_text(DOCUMENTS), CLEAN),
    "json lines": ("a.jsonl", as_json(DOCUMENTS), CLEAN),
    "json lines in .txt": ("a.txt", as_json(DOCUMENTS), CLEAN),
    "json lines without an ending": ("wiki_00", as_json(DOCUMENTS), CLEAN),
    "json lines with NaN elsewhere": ("a.json", as_json(DOCUMENTS, score=float("nan")), CLEAN),
    "csv": ("a.csv", as_table(DOCUMENTS), [f"{d} second line" for d in CLEAN]),
    "csv in .txt": ("a.txt", as_table(DOCUMENTS), [f"{d} second line" for d in CLEAN]),
    "tsv": ("a.tsv", as_table(DOCUMENTS, delimiter="\t"), [f"{d} second line" for d in CLEAN]),
    "parquet": ("a.parquet", as_parquet(DOCUMENTS), CLEAN),
    "parquet under another name": ("a.txt", as_parquet(DOCUMENTS), CLEAN),
    "arrow stream": ("a.arrow", as_arrow(DOCUMENTS, open_writer=pyarrow.ipc.new_stream), CLEAN),
    "arrow file": ("a.data", as_arrow(DOCUMENTS, open_writer=pyarrow.ipc.new_file), CLEAN),
    "wet": ("a.warc.wet", as_wet(DOCUMENTS), CLEAN),
    "wikiextractor": ("wiki_00", as_wikiextractor(DOCUMENTS), CLEAN),
}
ARCHIVE = as_tar({"x/a.txt": as_text(DOCUMENTS[:9]), "x/b.jsonl.gz": gzip.compress(as_json(DOCUMENTS[9:]))})
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_format_is_told_by_content_and_gives_its_documents(tmp_path: Path, kind: str) -> None:
    name, payload, expected = FILES[kind]
    (tmp_path / name).write_bytes(payload)
    found, tally, _ = read(tmp_path / name, BY_LINE, tmp_path / "spool")
    assert found == expected
    assert tally.total("rejected") == 0 and tally.total("documents") == len(expected)
    whole, of_whole, _ = read(tmp_path / name, BY_LINE, tmp_path / "spool", whole_bytes=1 << 40)
    assert whole == found and of_whole.total("text_bytes") == tally.total("text_bytes")


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", ["text", "json lines in .txt", "csv", "wet", "wikiextractor"])
def test_compression_changes_nothing(tmp_path: Path, kind: str, ending: str) -> None:
    name, payload, expected = FILES[kind]
    (tmp_path / f"{name}{ending}").write_bytes(PACKED[ending](payload))
    path = tmp_path / f"{name}{ending}"
    assert read(path, BY_LINE, tmp_path / "spool")[0] == expected
    assert read(path, BY_LINE, tmp_path / "spool", whole_bytes=1 << 40)[0] == expected


@pytest.mark.parametrize("ending", PACKED)
def test_members_of_a_tar_archive_are_read_where_that_is_asked_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.tar{ending}"
    path.write_bytes(PACKED[ending](ARCHIVE))
    assert read(path, TAR, tmp_path / "spool")[0] == CLEAN
    with pytest.raises(DataError, match=r"is a tar archive; unpack it, or read all its members with --format=tar"):
        read(path, BY_LINE, tmp_path / "spool")


def test_zstd_frames_of_the_longest_window_are_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    packed = io.BytesIO()
    writer = zstandard.ZstdCompressor(compression_params=parameters).stream_writer(packed, closefd=False)
    writer.write(as_text(DOCUMENTS))
    writer.flush(zstandard.FLUSH_FRAME)
    (tmp_path / "a.txt.zst").write_bytes(packed.getvalue())
    assert read(tmp_path / "a.txt.zst", BY_LINE, tmp_path / "spool")[0] == CLEAN


def test_a_clone_of_a_dataset_gives_its_tables_and_names_what_was_not_read(tmp_path: Path) -> None:
    files = {
        "README.md": b"# A data set\n\nAbout it.\n",
        "dataset_infos.json": b'{"default": 1}\n',
        "data/train-0.parquet": as_parquet(DOCUMENTS[:150]),
        "data/train-1.parquet": as_parquet(DOCUMENTS[150:]),
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    }
    for name, payload in files.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    found, _, corpus = read(tmp_path / "clone", ReadOptions(), tmp_path / "spool")
    assert found == CLEAN
    assert {(file.name, file.reason) for file in corpus.passed_over} == {
        ("clone/README.md", "documentation beside the data"),
        ("clone/dataset_infos.json", "a description of the data"),
        ("clone/picture.png", "binary data"),
    }


def test_a_folder_of_many_formats_is_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, (name, payload, _) in enumerate(FILES.values()):
        (folder / f"{number:02d}-{name}").write_bytes(payload)
    found, _, corpus = read(folder, BY_LINE, tmp_path / "spool")
    assert found == [document for *_, expected in FILES.values() for document in expected]
    assert corpus.passed_over == []


def test_a_file_of_a_folder_that_cannot_be_read_stops_or_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(as_text(DOCUMENTS))
    (folder / "b.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match=r"b\.zip: is a zip archive; unpack it, or use --on-unreadable=skip"):
        read(folder, BY_LINE, tmp_path / "spool")
    options = ReadOptions(document_per=DocumentPer.LINE, on_unreadable=UnreadablePolicy.SKIP)
    found, _, corpus = read(folder, options, tmp_path / "spool")
    assert found == CLEAN and [file.reason for file in corpus.passed_over] == ["a zip archive"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.arrow"])
def test_a_table_without_the_column_names_those_it_has(tmp_path: Path, name: str) -> None:
    payload = next(payload for known, payload, _ in FILES.values() if known == name)
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError, match=rf"{name}: no column 'body'.*--text-key names the column of the text, of '"):
        read(tmp_path / name, ReadOptions(text_keys=("body",)), tmp_path / "spool")


def test_keys_go_into_records_and_several_are_joined(tmp_path: Path) -> None:
    record = json.dumps({"meta": {"title": "A title"}, "body": "Its text."})
    (tmp_path / "a.jsonl").write_text(f"{record}\n{record}\n")
    options = ReadOptions(text_keys=("meta.title", "body"))
    assert read(tmp_path / "a.jsonl", options, tmp_path / "spool")[0] == ["A title Its text."] * 2
    table = pyarrow.table({"meta": [{"title": "A title"}] * 2, "body": ["Its text."] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", options, tmp_path / "spool")[0] == ["A title Its text."] * 2


def test_bad_rows_are_counted_by_their_number_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,good\n2\n3,\xff\xfe\n4,also good\n")
    found, tally, _ = read(tmp_path / "a.csv", ReadOptions(), tmp_path / "spool")
    assert found == ["good", "also good"]
    described = tally.describe()
    assert described["row_broken"]["first"] == "a.csv (byte 0): row 2: 1 fields where the header has 2"
    assert described["lone_surrogate"]["count"] == 1 and tally.total("lines") == 4
    table = pyarrow.table({"text": ["good", None, "also good"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found, tally, _ = read(tmp_path / "a.parquet", ReadOptions(), tmp_path / "spool")
    assert found == ["good", "also good"]
    assert tally.describe()["wrong_type"]["first"].endswith("row 2: 'text' is null")


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file", "tar", "wet"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    name, payload, _ = FILES.get(kind, ("a.tar", ARCHIVE, []))
    (tmp_path / name).write_bytes(payload[: len(payload) // 2])
    try:
        _, tally, _ = read(tmp_path / name, TAR if kind == "tar" else ReadOptions(), tmp_path / "spool")
    except DataError as error:
        assert str(error).startswith(str(tmp_path / name)) and "\n" not in str(error)
    else:
        assert tally.total("rejected") == 1


def test_web_pages_in_warc_are_refused_with_where_their_text_is(tmp_path: Path) -> None:
    page = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 4\r\n\r\n<p>x\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(page)
    with pytest.raises(DataError, match=r"a\.warc: holds web pages .* take the WET files"):
        read(tmp_path / "a.warc", ReadOptions(), tmp_path / "spool")


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">
<siteinfo><sitename>Wikipedia</sitename></siteinfo>
<page><title>One</title><ns>0</ns><id>1</id><revision><id>9</id><text>'''One''' is a [[number|small number]].{{cite|x}}
&lt;ref&gt;A source&lt;/ref&gt;
{| class="t"
| cell
|}
== Uses ==
[[File:x.png|thumb|A picture]] It [[count]]s. [[Category:Numbers]]</text><sha1>abc</sha1></revision></page>
<page><title>Talk:One</title><ns>1</ns><id>2</id><revision><text>Talk</text></revision></page>
<page><title>Uno</title><ns>0</ns><id>3</id><redirect title="One"/>
<revision><text>#REDIRECT [[One]]</text></revision></page>
</mediawiki>
"""


def test_a_wikipedia_dump_gives_the_text_of_its_articles(tmp_path: Path) -> None:
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(WIKI.encode()))
    found, _, _ = read(tmp_path / "dump.xml.bz2", ReadOptions(), tmp_path / "spool")
    assert found == ["One is a small number. Uses It counts."]


def test_an_unknown_format_is_refused_with_all_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"--format=docx is no format; known: auto .*text .*jsonl .*parquet .*tar"):
        read(tmp_path / "a.txt", ReadOptions(input_format="docx"), tmp_path / "spool")


def test_a_pattern_names_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"text of {name}\n")
    assert read(tmp_path / "*.txt", BY_LINE, tmp_path / "spool")[0] == ["text of a.txt", "text of b.txt"]
    with pytest.raises(DataError, match=r"\*\.csv: no file matches this pattern"):
        read(tmp_path / "*.csv", BY_LINE, tmp_path / "spool")


def test_standard_input_is_a_corpus_and_its_copy_is_removed(tmp_path: Path, prepared: Path) -> None:
    command = ["-m", "megadeberta", "prep", "-", "-o", "out", "--tokenizer", prepared / "tokenizer" / "spm.model"]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--document-per", "line", "--max-unknown-fraction", "1", "-j", "1"],
        input=as_text(DOCUMENTS),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["corpus"]["documents"] == 300 and report["files"]["read"] == {"text": 1}
    assert not (tmp_path / "out" / ".standard-input").exists()
