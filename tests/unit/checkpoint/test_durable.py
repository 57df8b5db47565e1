"""Bytes and hash agree however the writing goes."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from megadeberta.checkpoint.durable import (
    Digest,
    HashingFile,
    create_empty,
    format_bytes,
    hash_file,
    hash_parts,
    read_small_file,
)


@pytest.mark.parametrize("largest_write", [1 << 30, 70_001])
def test_the_digest_is_that_of_the_file_for_small_large_and_partial_writes(
    tmp_path: Path, largest_write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:largest_write]))
    generator = random.Random(3)
    parts = [generator.randbytes(size) for size in (0, 1, 300_000, 17, 2_000_000, 262_144, 5)]
    with HashingFile(tmp_path / "file") as file:
        for part in parts:
            file.write(memoryview(part))
        digest = file.finish()
    whole = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == whole
    assert digest == Digest(len(whole), hashlib.sha256(whole).hexdigest()) == hash_file(tmp_path / "file")


def test_parts_of_a_file_that_two_write_are_hashed_as_they_are_written_and_as_they_are_read(tmp_path: Path) -> None:
    path, generator = tmp_path / "file", random.Random(5)
    create_empty(path)
    contents = {100_000: generator.randbytes(2_500_000), 0: generator.randbytes(100_000)}
    digests = {}
    with HashingFile(path, is_new=False) as one, HashingFile(path, is_new=False) as other:
        for file, (offset, content) in zip((one, other), contents.items(), strict=True):
            file.go_to(offset)
            file.write(content)
            digests[offset] = file.take_digest()
        other.write(b"behind")  # over what the other one wrote
        digests[100_000] = other.finish()
    whole = contents[0] + b"behind" + contents[100_000][6:]
    assert path.read_bytes() == whole
    assert digests[100_000] == Digest(6, hashlib.sha256(b"behind").hexdigest())
    assert digests[0] == Digest(100_000, hashlib.sha256(contents[0]).hexdigest())
    parts = [(7, 0), (100_006, 2_499_994), (0, 100_000), (2_599_999, 5)]
    expected = [whole[offset : offset + size] for offset, size in parts]
    assert list(hash_parts(path, parts)) == [hashlib.sha256(part).hexdigest() for part in expected]


@pytest.mark.parametrize("kind", ["nothing", "link", "hard link", "fifo", "folder"])
def test_only_a_file_with_one_name_is_written_to(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_bytes(b"keep me")
    {
        "nothing": lambda: None,
        "link": lambda: path.symlink_to(target),
        "hard link": lambda: os.link(target, path),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="file"):
        HashingFile(path, is_new=False)
    assert len(os.listdir("/proc/self/fd")) == before
    if kind != "nothing":
        with pytest.raises(FileExistsError):
            create_empty(path)
    assert target.read_bytes() == b"keep me"


def test_a_small_file_is_not_read_when_it_is_large(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_small_file(tmp_path / "file", 11) == b"x" * 11
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_small_file(tmp_path / "file", 10)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (8_400_000, "8.4 MB"), (7 * 10**9, "7.0 GB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text
