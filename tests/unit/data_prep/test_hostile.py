"""Inputs made to do harm: each gives a typed error or the right text, and memory stays below a gigabyte."""

import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.unit.data_prep.test_formats import as_parquet

SCRIPT = Path(__file__).parent / "read_corpus.py"
MOST_BYTES = 1 << 30
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


def test_a_table_that_is_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
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
