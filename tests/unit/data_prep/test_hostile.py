"""Inputs made to do harm: each gives a typed error or the right text, and memory stays below a gigabyte."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.formats.rows import CSV, TSV
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.sources import check_unchanged, find_sources
from megadeberta.errors import DataError
from tests.unit.data_prep.test_formats import as_arrow, as_parquet, as_tar

SCRIPT = Path(__file__).parent / "read_corpus.py"
MOST_BYTES = 1 << 30
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
LINE = b"a line of text that is repeated\n"


def read(folder: Path, *options: str) -> dict:
    """What ``read_corpus.py`` says of each file, and its largest memory; it runs in a process of its own."""
    command = [sys.executable, str(SCRIPT), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("peak_bytes") < MOST_BYTES
    return found


def bomb(pack: Callable[[bytes], bytes]) -> bytes:
    """256 MiB of text in a few kilobytes, from the same packed block many times over."""
    return pack(LINE * (1 << 18)) * 32


def hostile_tar() -> bytes:
    """Names that lead elsewhere, links, a device, and one honest member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("../../outside.txt", "/tmp/absolute.txt", "honest.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(b"text of a member")
            archive.addfile(member, io.BytesIO(b"text of a member"))
        for name, kind in (("link.txt", tarfile.SYMTYPE), ("hard.txt", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return out.getvalue()


def test_bombs_stop_at_the_limit_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "bomb.txt.gz").write_bytes(bomb(gzip.compress))
    (tmp_path / "bomb.txt.zst").write_bytes(bomb(zstandard.compress))
    for name, about in read(tmp_path).items():
        assert about["counts"] == {"decompression_bomb": 1}, name
        assert about["documents"] < 3 << 20


def test_deep_and_long_json_is_counted_and_the_next_record_is_read(tmp_path: Path) -> None:
    deep = b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
    number = b'{"text": "x", "n": ' + b"9" * 10_000 + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n' + deep + number + b'{"text": "last"}\n')
    (about,) = read(tmp_path).values()
    assert about["counts"] == {"nesting_too_deep": 1, "number_too_long": 1} and about["documents"] == 2


def test_a_line_of_100_megabytes_is_left_out_or_read_as_the_limit_says(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"word and " * 11_200_000 + b"\nlast line\n")
    (about,) = read(tmp_path).values()
    assert about["counts"] == {"line_too_long": 1} and about["documents"] == 1
    (about,) = read(tmp_path, str(128 << 20)).values()
    assert about["counts"] == {} and about["documents"] == 26


def test_a_tar_archive_writes_nothing_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tar").write_bytes(hostile_tar())
    (about,) = read(tmp_path / "corpus", "tar").values()
    assert about["documents"] == 3 and "error" not in about
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_a_member_that_is_damaged_or_a_bomb_is_named_and_counted(tmp_path: Path) -> None:
    text = random.Random(1).randbytes(40_000).hex(" ", 5).encode() + b"\n"
    flipped = {name: bytearray(pack(text)) for name, pack in PACKERS.items()}
    for packed in flipped.values():
        packed[len(packed) // 2] ^= 0xFF
    members = {f"flipped.{name}": bytes(packed) for name, packed in flipped.items()}
    members |= {f"cut.{name}": pack(text)[:9000] for name, pack in PACKERS.items()}
    members |= {"bomb.gz": bomb(gzip.compress), "bomb.zst": bomb(zstandard.compress)}
    for name, payload in members.items():
        (tmp_path / f"{name}.tar").write_bytes(as_tar({"first.txt": LINE, name: payload, "z.txt": LINE}))
    found = read(tmp_path, "tar")
    for name in members:
        about = found[f"{name}.tar"]
        if name.startswith("flipped"):
            assert f"{name}: the compressed data is damaged" in about["error"], name
        else:
            kind = "decompression_bomb" if name.startswith("bomb") else "truncated_file"
            assert about["counts"] == {kind: 1} and about["documents"] >= 1, name


def test_an_archive_never_ends_before_its_last_member_unsaid(tmp_path: Path) -> None:
    whole = as_tar({f"{name}.txt": LINE for name in "abc"})
    (tmp_path / "whole.tar").write_bytes(whole)
    (tmp_path / "joined.tar").write_bytes(whole + whole)
    (tmp_path / "header.tar").write_bytes(whole[:1024] + b"x" + whole[1025:])
    (tmp_path / "number.tar").write_bytes(pax_with(b"12 size=4x\n"))
    (tmp_path / "long.tar").write_bytes(pax_with(b"%d comment=%b\n" % ((2 << 20) + 16, b"x" * (2 << 20))))
    (tmp_path / "holes.tar").write_bytes(
        pax_with(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"1\n99999999\n1\n")
    )
    found = read(tmp_path, "tar")
    assert (found["whole.tar"]["documents"], found["joined.tar"]["documents"]) == (3, 6)
    assert "the tar archive is damaged (bad checksum at byte 1024)" in found["header.tar"]["error"]
    assert "the tar archive is damaged" in found["number.tar"]["error"]
    assert "the tar archive is damaged (a header of" in found["long.tar"]["error"]
    assert "its member a.txt is stored with holes" in found["holes.tar"]["error"]


def pax_with(header: bytes, body: bytes = b"") -> bytes:
    """A member a.txt behind an extended header of these bytes."""
    blocks = b""
    for name, kind, content in (("pax", tarfile.XHDTYPE, header), ("a.txt", tarfile.REGTYPE, body or LINE)):
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(content)
        blocks += member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return blocks + bytes(1024)


def test_long_rows_and_bombs_of_tables_take_no_memory(tmp_path: Path) -> None:
    text, long = LINE.decode() * (1 << 14), "x" * (3 << 20)
    mixed = ["short", long, *["also short"] * 9]
    (tmp_path / "bomb.parquet").write_bytes(as_parquet([text] * 40))
    (tmp_path / "long.parquet").write_bytes(as_parquet([long]))
    (tmp_path / "mixed.parquet").write_bytes(as_parquet(mixed))
    (tmp_path / "mixed.arrow").write_bytes(as_arrow(mixed, open_writer=pyarrow.ipc.new_file))
    found = read(tmp_path, str(1 << 20))
    assert found["bomb.parquet"]["counts"] == {"decompression_bomb": 1}
    assert "rows of " in found["long.parquet"]["error"] and "--max-line-bytes" in found["long.parquet"]["error"]
    for name in ("mixed.parquet", "mixed.arrow"):
        assert found[name]["counts"] == {"line_too_long": 1} and found[name]["documents"] == 10


def test_a_large_entry_of_a_dictionary_is_not_unfolded_row_by_row(tmp_path: Path) -> None:
    # 64 rows are read at once: 2.5 GB of the same 40 MB, unless the dictionary stays one.
    entries = pyarrow.array(["short text", LINE.decode() * (40_000_000 // len(LINE))])
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100 + [1] * 64, pyarrow.int32()), entries)
    table = pyarrow.table({"text": rows})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", write_statistics=False, store_schema=False)
    (about,) = read(tmp_path).values()
    assert about["documents"] == 100 and about["counts"] == {"line_too_long": 64}


def test_a_row_that_swallows_others_counts_with_its_bytes(tmp_path: Path) -> None:
    rows = [b"%d,a text of several words" % number for number in range(1000)]
    rows[500] = b'500,"a quote that nobody closes'
    (tmp_path / "open.csv").write_bytes(b"id,text\n" + b"\n".join(rows) + b"\n")
    rows[900] = b'900,"again",and again'
    (tmp_path / "closed.csv").write_bytes(b"id,text\n" + b"\n".join(rows) + b"\n")
    corpus = find_sources([tmp_path], split="train", options=ReadOptions(), outside=tmp_path / "out")
    for source in corpus.sources:
        tally = Tally()
        with source.path.open("rb") as file:
            texts = list(CSV.texts(file, ReadOptions(), tally))
        assert set(texts) == {"a text of several words"} and len(texts) >= 500
        assert tally.counts == {"row_broken": 1} and tally.rejected_bytes > 10_000
        assert ("not closed" in tally.examples["row_broken"].detail) == (source.path.name == "open.csv")


def test_a_lone_quote_never_joins_two_rows(tmp_path: Path) -> None:
    table = "id\ttext\n" + "".join(f'{number}\t"he said {number}\n' for number in range(6)) + "6\tgood\n"
    tally = Tally()
    assert list(TSV.texts(io.BytesIO(table.encode()), ReadOptions(), tally)) == ["good"]
    assert tally.counts == {"row_broken": 3} and tally.rejected_bytes == 6 * len('0\t"he said 0\n')


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = [pyarrow.array(["first", "third"]), pyarrow.array(["second", "fourth"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,text\nfirst,second\nthird,fourth\n")
    assert "2 columns are named 'text'" in read(tmp_path)[name]["error"]


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "remove"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one text of a few words\n" * 100)
    (source,) = find_sources([path], split="train", options=ReadOptions(), outside=tmp_path / "out").sources
    check_unchanged([source])
    size = path.stat().st_size
    if change == "grow":
        path.write_text("one text of a few words\n" * 101)
    elif change == "shrink":
        os.truncate(path, size // 2)
    elif change == "rewrite":
        path.write_text("two text of a few words\n" * 100)
        os.utime(path, ns=(source.mtime_ns + 1, source.mtime_ns + 1))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"a\.txt: changed while it was read"):
        check_unchanged([source])


def test_text_of_a_table_that_is_no_utf8_is_counted(tmp_path: Path) -> None:
    offsets, content = struct.pack("<4i", 0, 4, 8, 12), b"goodab\xff\xfegood"
    column = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(content)]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path)["a.parquet"] == {"documents": 2, "counts": {"invalid_utf8": 1}}


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "text.txt").write_text(f"text of {name}")
    for number in range(30):  # a walk through two of them never ends
        (tmp_path / "text" / "a" / f"up-{number}").symlink_to(tmp_path if number % 2 else ".")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.txt").write_text("more text")
    (tmp_path / "text" / "c").symlink_to("../elsewhere")
    found = find_sources([tmp_path / "text"], split="train", options=ReadOptions(), outside=tmp_path / "out")
    assert [source.name for source in found.sources] == ["text/a/text.txt", "text/b/text.txt", "text/c/more.txt"]
    assert len(found.passed_over) == 30 and all("a link to a folder" in file.reason for file in found.passed_over)


def test_every_real_folder_is_walked_once_whatever_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 folders outside, each with links to all: there are 12! ways through them."""
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(os.path.realpath(place)) or scandir(place))
    (tmp_path / "text").mkdir()
    for number in range(12):
        folder = tmp_path / "elsewhere" / f"{number:02d}"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(f"text {number}")
        for other in range(12):
            (folder / f"to-{other:02d}").symlink_to(f"../{other:02d}")
    for name in ("first", "second"):
        (tmp_path / "text" / name).symlink_to("../elsewhere")
    found = find_sources([tmp_path / "text"], split="train", options=ReadOptions(), outside=tmp_path / "out")
    assert sorted(source.path.read_text() for source in found.sources) == sorted(f"text {n}" for n in range(12))
    assert len(listed) < 20 and len({place for place in listed if "elsewhere" in place}) == 13


def test_a_link_to_a_hidden_folder_is_followed_and_one_to_its_neighbour_is_not(tmp_path: Path) -> None:
    for name in (".store", "b"):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "a.txt").write_text(f"text of {name}")
    (tmp_path / "text" / "a").symlink_to("b")
    (tmp_path / "text" / "c").symlink_to(".store")
    found = find_sources([tmp_path / "text"], split="train", options=ReadOptions(), outside=tmp_path / "out")
    assert [source.name for source in found.sources] == ["text/b/a.txt", "text/c/a.txt"]
    assert [file.name for file in found.passed_over] == ["text/a"]


def test_what_the_kernel_makes_and_what_is_no_file_are_passed_over_and_listed(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a text")
    links = {"proc": "/proc", "root": "/", "sys": "/sys", "zero": "/dev/zero", "status.txt": "/proc/self/status"}
    for name, target in links.items():
        (tmp_path / "text" / name).symlink_to(target)
    os.mkfifo(tmp_path / "text" / "pipe")
    found = find_sources([tmp_path / "text"], split="train", options=ReadOptions(), outside=tmp_path / "out")
    assert [source.name for source in found.sources] == ["text/a.txt"]
    reasons = {Path(file.name).name: file.reason for file in found.passed_over}
    assert reasons == {
        "proc": "a folder of the kernel",
        "sys": "a folder of the kernel",
        "root": "a link to a folder that is read without it, or that it is in",
        "zero": "a pipe, socket or device",
        "pipe": "a pipe, socket or device",
        "status.txt": "a file of the kernel",
    }
    with pytest.raises(DataError, match=r"^/proc: is a folder of the kernel, and no text"):
        find_sources([Path("/proc")], split="train", options=ReadOptions(), outside=tmp_path / "out")
    with pytest.raises(DataError, match=r"/proc/self/status: is a file of the kernel; give files that hold text"):
        find_sources([Path("/proc/self/status")], split="train", options=ReadOptions(), outside=tmp_path / "out")


def test_a_name_that_is_no_utf8_is_said_in_another_way(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("a text")
    (source,) = find_sources([tmp_path], split="train", options=ReadOptions(), outside=tmp_path / "out").sources
    assert source.name.endswith("bad\\xff.txt") and source.name.encode()


def test_frames_that_hold_no_text_come_before_a_zstd_frame(tmp_path: Path) -> None:
    text = b"one text of a few words\n" * 100
    skipped = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    (tmp_path / "a.txt.zst").write_bytes(skipped + zstandard.compress(text) + skipped + zstandard.compress(text))
    (about,) = read(tmp_path).values()
    assert about == {"documents": 200, "counts": {}}


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", ""])
def test_a_record_without_a_true_length_is_refused(tmp_path: Path, length: str) -> None:
    record = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {}\r\n\r\ntext\r\n\r\n"
    (tmp_path / "a.wet").write_text(record.format(4) + record.format(length))
    (about,) = read(tmp_path).values()
    assert "record 2 has no Content-Length" in about["error"]


def test_a_table_that_is_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    whole = as_parquet([f"row {number}" for number in range(2000)])
    for size in (len(whole) // 2, len(whole) - 3, 100):
        (tmp_path / "a.parquet").write_bytes(whole[:size])
        (about,) = read(tmp_path).values()
        assert "a.parquet: the Parquet file is damaged" in about["error"]


@pytest.mark.campaign
def test_500_damaged_files_raise_nothing_but_typed_errors(tmp_path: Path) -> None:
    random.seed(7)
    text = "".join(f"line {number} of some text\n" for number in range(3000)).encode()
    records = b"".join(json.dumps({"text": f"record {number}"}).encode() + b"\n" for number in range(3000))
    whole = {
        "a.txt": text,
        "a.jsonl": records,
        "a.csv": b"text,n\n" + b"".join(b'"row, %d",1\n' % number for number in range(3000)),
        "a.txt.gz": gzip.compress(text),
        "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(records),
        "a.tar": hostile_tar(),
        "a.parquet": as_parquet([f"row {number}" for number in range(2000)]),
    }
    for trial in range(500):
        name = random.choice(sorted(whole))
        payload = bytearray(whole[name])
        for _ in range(random.choice((0, 1, 10, 200))):
            payload[random.randrange(len(payload))] = random.randrange(256)
        if random.random() < 0.5:
            del payload[random.randrange(len(payload)) :]
        folder = tmp_path / f"{trial:03d}"
        folder.mkdir()
        (folder / name).write_bytes(payload)
    found = read(tmp_path)
    assert len(found) == 500
