"""Blocks: documents do not depend on where they end, and damage to compressed files is contained."""

import gzip
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megadeberta.data_prep import blocks, documents
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import BlockCutter
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sources import find_sources
from megadeberta.errors import DataError

WHOLE, SPOOLED = 1 << 40, 0
"""Compressed files are read whole by whoever needs them, or cut while they are unpacked."""


def cut(
    path: Path, options: ReadOptions, *, block_bytes: int, spool: Path, whole_bytes: int = SPOOLED
) -> tuple[list[str], Tally, int]:
    """Documents, joined tally and number of blocks of one file."""
    sources = find_sources([path], split="train", options=options, outside=path / "none").sources
    cutter = BlockCutter(sources, options, block_bytes=block_bytes, whole_bytes=whole_bytes, spool=spool)
    found, whole, count = [], Tally(), 0
    for block in cutter:
        for section in block.sections:
            tally = Tally()
            found += read_documents(section, options, source=sources[section.source], tally=tally)
            whole.add(tally)
        count += 1
    for damage in cutter.damage.values():
        whole.add(damage)
    return found, whole, count


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
    whole_bytes=st.sampled_from([WHOLE, SPOOLED]),
)
def test_documents_do_not_depend_on_blocks_windows_or_compression(
    tmp_path: Path,
    lines: list[bytes],
    per: DocumentPer,
    block_bytes: int,
    window: int,
    compression: str,
    whole_bytes: int,
) -> None:
    payload = b"\n".join(lines)
    options = ReadOptions(document_per=per)
    plain, packed = tmp_path / "a.txt", tmp_path / f"b.txt{compression}"
    plain.write_bytes(payload)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    packed.write_bytes(pack(payload))
    whole, whole_tally, _ = cut(plain, options, block_bytes=1 << 20, spool=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_WINDOW", window)
        patch.setattr(blocks, "_OVERLAP", 20)
        patch.setattr(documents, "_UNPACKED_AT_ONCE", window)
        pieces, tally, _ = cut(packed, options, block_bytes=block_bytes, whole_bytes=whole_bytes, spool=tmp_path)
    assert pieces == whole
    assert tally.counts == whole_tally.counts and tally.examples.keys() == whole_tally.examples.keys()
    for kind, example in tally.examples.items():
        assert example == whole_tally.examples[kind]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_many_blocks_really_are_cut(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    payload = b"\n\n".join(b"paragraph %d" % i for i in range(30_000))
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression](payload))
    found, tally, count = cut(path, ReadOptions(), block_bytes=100_000, spool=tmp_path)
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
    found, tally, _ = cut(path, options, block_bytes=200_000, spool=tmp_path)
    assert list(tally.counts) == ["truncated_file"]
    assert len(found) > 5_000 and found == lines[: len(found)]
    whole, whole_tally, count = cut(path, options, block_bytes=200_000, whole_bytes=WHOLE, spool=tmp_path)
    assert (whole, count) == (found, 1)
    assert (whole_tally.counts, whole_tally.examples) == (tally.counts, tally.examples)
    assert whole_tally.text_bytes == tally.text_bytes


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
        found, tally, _ = cut(path, ReadOptions(), block_bytes=1 << 20, spool=tmp_path)
        assert found == ["one", "two", "three"] and tally.counts == {}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_decompression_bomb_is_stopped_near_the_floor(tmp_path: Path, compression: str) -> None:
    line = b"a word " * 146 + b"\n"
    path = tmp_path / f"bomb.txt.{compression}"
    path.write_bytes({"gz": gzip.compress, "zst": zstandard.compress}[compression](line * (96 << 10)))
    options = ReadOptions(document_per=DocumentPer.LINE)
    found = [cut(path, options, block_bytes=1 << 20, whole_bytes=whole, spool=tmp_path) for whole in (SPOOLED, WHOLE)]
    assert found[0][0] == found[1][0]
    for _, tally, _ in found:
        assert list(tally.counts) == ["decompression_bomb"]
        assert tally.text_bytes <= (16 << 20) + (64 << 20)


def test_small_files_are_read_several_to_a_block_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(200):
        text, packed = b"text of file %03d" % number, number % 3 == 0
        name = f"{number:03d}.txt{'.gz' if packed else ''}"
        (folder / name).write_bytes(gzip.compress(text) if packed else text)
    (folder / "100-large.txt").write_bytes(b"text of a large file\n\n" * 400)
    options = ReadOptions(document_per=DocumentPer.FILE)
    found, tally, count = cut(folder, options, block_bytes=2000, whole_bytes=500, spool=tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    numbers = [name[:3] for name in names if "large" not in name]
    small = [text for text in found if "large" not in text]
    assert small == [f"text of file {number}" for number in numbers]
    assert found.index(max(found, key=len)) == names.index("100-large.txt")
    assert count < 10 and tally.documents == 201


def test_files_of_other_splits_and_corpora_never_share_a_block(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(4)]
    for path in paths:
        path.write_text("text")
    options = ReadOptions()
    train = find_sources(paths[:2], split="train", options=options, outside=tmp_path / "none").sources
    valid = find_sources(paths[2:], split="valid", options=options, outside=tmp_path / "none").sources
    cutter = BlockCutter(train + valid, options, block_bytes=1 << 20, whole_bytes=WHOLE, spool=tmp_path)
    assert [[section.source for section in block.sections] for block in cutter] == [[0], [1], [2], [3]]
