"""Blocks: documents do not depend on where they end, and damage to compressed files is contained."""

import gzip
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megadeberta.data_prep import blocks
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import BlockCutter
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sources import find_sources
from megadeberta.errors import DataError


def cut(path: Path, options: ReadOptions, *, block_bytes: int, spool: Path) -> tuple[list[str], Tally, int, dict]:
    """Documents, joined tally, number of blocks and damage of one file."""
    sources = find_sources([path], split="train", options=options, outside=path / "none").sources
    cutter = BlockCutter(sources, options, block_bytes=block_bytes, spool=spool)
    found, whole, count = [], Tally(), 0
    for block in cutter:
        tally = Tally()
        found += read_documents(block, options, file_format=sources[0].file_format, tally=tally)
        whole.add(tally)
        count += 1
    return found, whole, count, cutter.damage


LINES = st.sampled_from(
    [
        b"",
        b" ",
        b"\t\r",
        b"text",
        b" = Title = ",
        b" = = Section = = ",
        b"\xff",
        b"\xef\xbb\xbfmark",
        b" = x = \r",
        b"long " * 9,
    ]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, min_size=1, max_size=40),
    per=st.sampled_from(list(DocumentPer)),
    block_bytes=st.integers(1, 60),
    window=st.integers(3, 50),
    compression=st.sampled_from(["", ".gz", ".zst"]),
)
def test_documents_do_not_depend_on_blocks_windows_or_compression(
    tmp_path: Path, lines: list[bytes], per: DocumentPer, block_bytes: int, window: int, compression: str
) -> None:
    payload = b"\n".join(lines)
    options = ReadOptions(document_per=per)
    plain, packed = tmp_path / "a.txt", tmp_path / f"b.txt{compression}"
    plain.write_bytes(payload)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    packed.write_bytes(pack(payload))
    whole, whole_tally, _, _ = cut(plain, options, block_bytes=1 << 20, spool=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_WINDOW", window)
        patch.setattr(blocks, "_OVERLAP", 20)
        pieces, tally, _, damage = cut(packed, options, block_bytes=block_bytes, spool=tmp_path)
    assert pieces == whole
    assert tally.counts == whole_tally.counts and tally.examples.keys() == whole_tally.examples.keys()
    for kind, example in tally.examples.items():
        assert example == whole_tally.examples[kind]
    assert damage == {}


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_many_blocks_really_are_cut(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    payload = b"\n\n".join(b"paragraph %d" % i for i in range(30_000))
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression](payload))
    found, tally, count, _ = cut(path, ReadOptions(), block_bytes=100_000, spool=tmp_path)
    assert len(found) == 30_000 and tally.lines == 59_999
    assert 2 <= count <= 5


def numbered_lines(tmp_path: Path, compression: str) -> tuple[Path, list[str]]:
    lines = [f"line {i} of some text that hardly compresses {i * 7919 % 10007}" for i in range(30_000)]
    path = tmp_path / f"a.txt.{compression}"
    payload = "\n".join(lines).encode()
    path.write_bytes(
        gzip.compress(payload)
        if compression == "gz"
        else zstandard.ZstdCompressor(write_checksum=True).compress(payload)
    )
    return path, lines


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_whole_lines_before_a_cut_are_kept_and_the_file_is_counted(tmp_path: Path, compression: str) -> None:
    path, lines = numbered_lines(tmp_path, compression)
    os.truncate(path, path.stat().st_size // 2)
    options = ReadOptions(document_per=DocumentPer.LINE)
    found, _, _, damages = cut(path, options, block_bytes=200_000, spool=tmp_path)
    assert list(damages[0].counts) == ["truncated_file"]
    assert len(found) > 5_000 and found == lines[: len(found)]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_corrupt_file_is_refused_because_no_part_of_it_can_be_trusted(tmp_path: Path, compression: str) -> None:
    path, _ = numbered_lines(tmp_path, compression)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 400] = bytes(400)
    path.write_bytes(packed)
    with pytest.raises(
        DataError, match=r"a\.txt\.(gz|zst): the compressed data is damaged \(.*\); fetch the file again"
    ):
        cut(path, ReadOptions(document_per=DocumentPer.LINE), block_bytes=200_000, spool=tmp_path)


def test_several_frames_and_members_in_one_file_are_all_read(tmp_path: Path) -> None:
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"one\n\n") + pack(b"two\n\n") + pack(b"three\n"))
        found, _, _, damage = cut(path, ReadOptions(), block_bytes=1 << 20, spool=tmp_path)
        assert found == ["one", "two", "three"] and damage == {}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_decompression_bomb_is_stopped_near_the_floor(tmp_path: Path, compression: str) -> None:
    line = b"a" * 1023 + b"\n"
    path = tmp_path / f"bomb.txt.{compression}"
    path.write_bytes({"gz": gzip.compress, "zst": zstandard.compress}[compression](line * (96 << 10)))
    _, tally, _, damage = cut(path, ReadOptions(document_per=DocumentPer.LINE), block_bytes=1 << 20, spool=tmp_path)
    assert list(damage[0].counts) == ["decompression_bomb"]
    assert tally.text_bytes <= (16 << 20) + (64 << 20)
