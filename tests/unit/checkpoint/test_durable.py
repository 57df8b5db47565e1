"""Bytes and hash agree however the writing goes."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from megadeberta.checkpoint.durable import Digest, HashingFile, format_bytes, hash_file, read_small_file


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
