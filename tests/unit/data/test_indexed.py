"""The shard format: bytes, round trips, and what writer and reader promise."""

import errno
import hashlib
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megadeberta import storage
from megadeberta.data.index_layout import ShardIndex, decode_index, encode_index, smallest_dtype
from megadeberta.data.indexed import TokenShard
from megadeberta.data.shard_files import SUFFIXES
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.errors import DataError, StorageError

# Written by megatron-core 0.19.2 for documents [[1,2,3],[4,5]], [[6]], [[7,8,9,10]] in uint16.
MEGATRON_IDX = bytes.fromhex(
    "4d4d4944494458000001000000000000000804000000000000000400000000000000"
    "03000000020000000100000004000000"
    "000000000000000006000000000000000a000000000000000c00000000000000"
    "0000000000000000020000000000000003000000000000000400000000000000"
)
MEGATRON_BIN = bytes.fromhex("0100020003000400050006000700080009000a00")
TOKENIZER = {"tokenizer_sha256": "0" * 64, "tokenizer_pieces": 1000}


def write_megatron_example(prefix: Path, *, vocab_size: int = 1000) -> None:
    with ShardWriter(prefix, dtype=smallest_dtype(vocab_size)) as writer:
        writer.add_document([1, 2, 3, 4, 5], [3, 2])
        writer.add_document([6])
        writer.add_document(np.array([7, 8, 9, 10]))
        writer.commit(**TOKENIZER)


def test_files_are_the_bytes_megatron_writes(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a")
    assert (tmp_path / "a.idx").read_bytes() == MEGATRON_IDX
    assert (tmp_path / "a.bin").read_bytes() == MEGATRON_BIN


def test_int32_files_differ_from_uint16_only_in_code_offsets_and_width(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a", vocab_size=128_100)
    expected = bytearray(MEGATRON_IDX)
    expected[17] = 4
    for sequence, offset in enumerate((0, 0x0C, 0x14, 0x18)):
        expected[50 + 8 * sequence] = offset
    assert (tmp_path / "a.idx").read_bytes() == bytes(expected)
    assert (tmp_path / "a.bin").read_bytes() == np.arange(1, 11, dtype="<i4").tobytes()


@pytest.mark.parametrize(("vocab_size", "name"), [(65_499, "uint16"), (65_500, "int32"), (128_100, "int32")])
def test_dtype_follows_megatrons_rule(vocab_size: int, name: str) -> None:
    assert smallest_dtype(vocab_size).name == name


def test_reader_gives_documents_and_ranges(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a")
    with TokenShard.open(tmp_path / "a", verify_hash=True) as shard:
        assert (shard.num_tokens, shard.num_documents, shard.num_sequences) == (10, 3, 4)
        assert shard.document_offsets.tolist() == [0, 5, 6]
        assert [shard.document(i).tolist() for i in range(3)] == [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10]]
        assert shard.read_tokens(3, 8).tolist() == [4, 5, 6, 7, 8]
        assert shard.read_tokens(4, 4).tolist() == []
        assert shard.read_tokens(0, 1).dtype == shard.dtype == np.uint16
        assert shard.manifest.max_token_id == 10


documents = st.lists(st.lists(st.lists(st.integers(0, 65_499), max_size=6), max_size=4), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=documents, wide=st.booleans())
def test_what_is_written_is_read_back(tmp_path: Path, documents: list[list[list[int]]], wide: bool) -> None:
    prefix = tmp_path / "shard"
    with ShardWriter(prefix, dtype=smallest_dtype(70_000 if wide else 65_499)) as writer:
        for document in documents:
            writer.add_document([token for run in document for token in run], [len(run) for run in document])
        writer.commit(**TOKENIZER)
    flat = [[token for run in document for token in run] for document in documents]
    with TokenShard.open(prefix, verify_hash=True) as shard:
        assert shard.num_sequences == sum(map(len, documents))
        assert [shard.document(i).tolist() for i in range(shard.num_documents)] == flat
        assert shard.read_tokens(0, shard.num_tokens).tolist() == list(itertools.chain.from_iterable(flat))
        assert shard.manifest.max_token_id == max((token for document in flat for token in document), default=-1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=6),
    code=st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16"]),
)
def test_index_survives_encoding(lengths: list[int], cuts: list[int], code: str) -> None:
    marks = [0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)]
    index = ShardIndex(np.dtype(code), np.array(lengths, dtype=np.int32), np.array(marks, dtype=np.int64))
    decoded = decode_index(encode_index(index), path=Path("x.idx"))
    assert decoded.dtype == index.dtype
    assert decoded.lengths.tolist() == lengths
    assert decoded.document_index.tolist() == marks


def test_many_documents_at_once_equal_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 9, 200)
    tokens = rng.integers(0, 900, lengths.sum()).astype(np.uint16)
    with ShardWriter(tmp_path / "one", dtype=np.dtype("<u2")) as writer:
        for part in np.split(tokens, np.cumsum(lengths)[:-1]):
            writer.add_document(part)
        writer.commit(**TOKENIZER)
    with ShardWriter(tmp_path / "many", dtype=np.dtype("<u2")) as writer:
        writer.add_documents(tokens[: lengths[:70].sum()], lengths[:70])
        writer.add_documents(tokens[lengths[:70].sum() :], lengths[70:])
        writer.commit(**TOKENIZER)
    for suffix in SUFFIXES:
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"many.{suffix}").read_bytes()


def test_empty_shard_is_a_42_byte_index_that_opens(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer:
        writer.commit(**TOKENIZER)
    assert (tmp_path / "a.idx").stat().st_size == 42
    assert (tmp_path / "a.bin").stat().st_size == 0
    with TokenShard.open(tmp_path / "a", verify_hash=True) as shard:
        assert (shard.num_tokens, shard.num_documents) == (0, 0)
        assert shard.read_tokens(0, 0).tolist() == []
        assert shard.manifest.max_token_id == -1


def test_manifest_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a")
    with TokenShard.open(tmp_path / "a") as shard:
        assert shard.manifest.bin_sha256 == hashlib.sha256(MEGATRON_BIN).hexdigest()
        assert shard.manifest.idx_sha256 == hashlib.sha256(MEGATRON_IDX).hexdigest()


def test_dots_in_a_prefix_are_kept(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "en.v1.5")
    with TokenShard.open(tmp_path / "en.v1.5") as shard:
        assert shard.num_tokens == 10


def test_pickled_shard_opens_its_own_file(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a")
    with TokenShard.open(tmp_path / "a") as shard:
        copy = pickle.loads(pickle.dumps(shard))
        shard.close()
        assert copy.read_tokens(0, 3).tolist() == [1, 2, 3]
        copy.close()


def test_tokens_read_before_close_stay_valid_and_reading_after_it_is_an_error(tmp_path: Path) -> None:
    write_megatron_example(tmp_path / "a")
    shard = TokenShard.open(tmp_path / "a")
    tokens = shard.read_tokens(0, 3)
    shard.close()
    shard.close()
    assert tokens.tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"a\.bin: the shard was closed; open it again"):
        shard.read_tokens(0, 3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11)])
def test_reading_out_of_range_names_the_range(tmp_path: Path, start: int, stop: int) -> None:
    write_megatron_example(tmp_path / "a")
    with TokenShard.open(tmp_path / "a") as shard:
        with pytest.raises(DataError, match=rf"tokens \[{start}, {stop}\) asked, the shard has 10"):
            shard.read_tokens(start, stop)
        with pytest.raises(DataError, match="document 3 asked, the shard has 3"):
            shard.document(3)


@pytest.mark.parametrize("token", [-1, 65_536])
def test_token_outside_the_dtype_is_refused(tmp_path: Path, token: int) -> None:
    with (
        ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer,
        pytest.raises(DataError, match="do not fit uint16"),
    ):
        writer.add_document([5, token])


def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer:
        with pytest.raises(DataError, match=r"lengths \[1, 1\] do not add up to the document's 3 tokens"):
            writer.add_document([1, 2, 3], [1, 1])
        with pytest.raises(DataError, match="3 tokens of uint16 for lengths that add up to 2"):
            writer.add_documents(np.arange(3, dtype=np.uint16), np.array([2]))


def test_nothing_is_left_when_the_writer_is_not_committed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer:
        writer.add_document([1, 2, 3])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_full_disk_says_what_is_needed_and_leaves_nothing_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", refuse)
    with (
        pytest.raises(StorageError, match=r"cannot write .*a\.bin: No space left on device \(.* \d+ free\); make room"),
        ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer,
    ):
        writer.add_document([1, 2, 3])
        writer.commit(**TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_writing_where_nothing_may_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a\.bin"):
        ShardWriter(tmp_path / "missing" / "a", dtype=np.dtype("<u2"))


def test_a_replaced_shard_loses_its_old_manifest_before_its_new_tokens_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_megatron_example(tmp_path / "a")
    seen = []
    replace = storage.os.replace

    def record(source: Path, target: Path) -> None:
        seen.append((Path(target).name, (tmp_path / "a.json").exists()))
        replace(source, target)

    monkeypatch.setattr(storage.os, "replace", record)
    write_megatron_example(tmp_path / "a")
    assert seen == [("a.bin", False), ("a.sum", False), ("a.idx", False), ("a.json", False)]
