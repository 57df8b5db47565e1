"""The plan beside a token file: made once, the same sequences as without it, and never a wrong one."""

import contextlib
import fcntl
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import megadeberta.data.packing_plan
from megadeberta.data.block_sums import BLOCK_BYTES
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing import PackedReader
from megadeberta.data.packing_plan import _BlockWriter, plan_path, remove_plans
from megadeberta.data.packing_starts import SequenceStarts
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.steady_file import SteadyFile
from megadeberta.errors import DataError, StorageError

LENGTH = 24


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """1000 documents of 0 to 60 tokens, and one that fills many sequences."""
    write(tmp_path / "s", seed=0)
    return tmp_path / "s"


def write(prefix: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = [*generator.integers(0, 60, 500).tolist(), 900, *generator.integers(0, 60, 500).tolist()]
    with ShardWriter(prefix, dtype=np.dtype(np.uint16)) as writer:
        for length in lengths:
            writer.add_document(generator.integers(4, 60_000, length))
        writer.commit(tokenizer_sha256="0" * 64, tokenizer_pieces=65_000)


def expected(prefix: Path) -> np.ndarray:
    """All sequences, made token by token."""
    with TokenShard.open(prefix) as shard:
        documents = [shard.document(number) for number in range(shard.num_documents)]
    documents = [tokens for tokens in documents if len(tokens)]
    tokens, ends = np.concatenate(documents), np.cumsum([len(tokens) for tokens in documents])
    planned = SequenceStarts(LENGTH)
    starts = np.concatenate([*planned.add(ends), planned.finish()])
    rows = np.zeros((len(starts) - 1, LENGTH), np.int64)
    for row, start, stop in zip(rows, starts[:-1], starts[1:], strict=True):
        place = 0
        for part in np.split(tokens[start:stop], ends[(ends > start) & (ends < stop)] - start):
            row[place : place + len(part) + 2] = [1, *part, 2]
            place += len(part) + 2
    return rows


def read_all(prefix: Path) -> np.ndarray:
    reader = PackedReader(prefix, LENGTH)
    try:
        order = np.random.default_rng(1).permutation(reader.num_chunks)
        rows = np.empty((reader.num_chunks, LENGTH), np.int64)
        for some in np.array_split(order, 40):
            rows[some] = reader.read(some)
        return rows
    finally:
        reader.close()


def refuse(*_: object) -> None:
    raise AssertionError("planned again")


def test_sequences_are_those_of_the_documents_and_the_plan_is_made_once(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = expected(prefix)
    np.testing.assert_array_equal(read_all(prefix), rows)
    made = plan_path(prefix, LENGTH).read_bytes()
    monkeypatch.setattr(TokenShard, "document_ends", refuse)
    np.testing.assert_array_equal(read_all(prefix), rows)
    assert plan_path(prefix, LENGTH).read_bytes() == made
    assert PackedReader(prefix, LENGTH).read(np.empty(0, np.int64)).shape == (0, LENGTH)
    with pytest.raises(AssertionError, match="planned again"):
        PackedReader(prefix, LENGTH + 1)


@pytest.mark.parametrize(
    ("length", "sha256"),
    [
        (8, "1877df000283a3a7c49f100c948a95bc96b8e6aa4ef41c1c945607c37233de8b"),
        (24, "9fe56d1f34b955c228d5a4d6e6897121e71983bce1a5879307236148e7b4d54c"),
        (512, "4652bada3bc62da105f909202220c197ed17708ddaf97abe332a08b95a64af2c"),
    ],
)
def test_a_plan_has_the_bytes_of_the_first_version_made_in_blocks_of_any_size(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, length: int, sha256: str
) -> None:
    for size in (1 << 18, 300, 7):
        monkeypatch.setattr("megadeberta.data.index_blocks.NUMBERS_AT_ONCE", size)
        remove_plans(prefix)
        PackedReader(prefix, length).close()
        assert hashlib.sha256(plan_path(prefix, length).read_bytes()).hexdigest() == sha256


def test_planning_reads_the_index_a_block_at_a_time_and_holds_no_more_starts_than_that(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megadeberta.data.index_blocks.NUMBERS_AT_ONCE", 64)
    monkeypatch.setattr("megadeberta.data.packing_starts._STARTS_AT_ONCE", 16)
    read, held = [], []
    fill, add = SteadyFile.fill, _BlockWriter.add

    def counted_fill(file: SteadyFile, target: np.ndarray, offset: int) -> None:
        if file.path.suffix == ".idx":
            read.append(target.nbytes)
        fill(file, target, offset)

    def counted_add(writer: _BlockWriter, values: np.ndarray) -> None:
        held.append(len(values))
        add(writer, values)

    monkeypatch.setattr(SteadyFile, "fill", counted_fill)
    monkeypatch.setattr(_BlockWriter, "add", counted_add)
    PackedReader(prefix, LENGTH).close()
    assert len(read) > 30 and max(read) <= 64 * 8
    assert len(held) > 30 and max(held) <= 64


def test_documents_of_several_sequences_and_of_none_end_where_the_whole_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(4)
    with ShardWriter(tmp_path / "s", dtype=np.dtype(np.uint16)) as writer:
        for _ in range(40):
            lengths = generator.integers(0, 9, generator.integers(0, 6)).tolist()
            writer.add_document(generator.integers(4, 60_000, sum(lengths)), lengths)
        writer.commit(tokenizer_sha256="0" * 64, tokenizer_pieces=65_000)
    monkeypatch.setattr("megadeberta.data.index_blocks.NUMBERS_AT_ONCE", 7)
    with TokenShard.open(tmp_path / "s") as shard:
        found = np.concatenate(list(shard.document_ends()))
        assert found.tolist() == [*shard.document_offsets[1:].tolist(), shard.num_tokens]


def test_who_waits_for_the_plan_of_another_process_sleeps_and_says_so(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, tries, is_waiting = [], [], threading.Event()
    real = megadeberta.data.packing_plan.take_lock

    @contextlib.contextmanager
    def waiting(what: str) -> Iterator[None]:
        said.append(what)
        is_waiting.set()
        yield

    def counted(descriptor: int, **options: float) -> bool:
        tries.append(options)
        return real(descriptor, **options)

    monkeypatch.setattr(megadeberta.data.packing_plan, "Waiting", waiting)
    monkeypatch.setattr(megadeberta.data.packing_plan, "take_lock", counted)
    with ThreadPoolExecutor(1) as pool:
        with prefix.with_name("s.idx").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            opened = pool.submit(PackedReader, prefix, LENGTH)
            assert is_waiting.wait(60)
        opened.result().close()
    assert said[0] == f"waiting for s.packing-{LENGTH}, which another process makes"
    assert tries == [{"wait_seconds": 0.0}, {}]  # once without waiting, once until it is free


def test_processes_that_start_together_make_one_plan(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = TokenShard.document_ends

    def counted(shard: TokenShard) -> Iterator[np.ndarray]:
        calls.append(1)
        return real(shard)

    monkeypatch.setattr(TokenShard, "document_ends", counted)
    with ThreadPoolExecutor(8) as pool:
        readers = list(pool.map(lambda _: PackedReader(prefix, LENGTH), range(8)))
    assert len(calls) == 1
    assert len({reader.num_chunks for reader in readers}) == 1
    assert sorted(path.name for path in prefix.parent.iterdir() if "packing" in path.name) == [f"s.packing-{LENGTH}"]


def test_another_token_file_under_the_same_name_gets_another_plan(prefix: Path) -> None:
    before = read_all(prefix)
    write(prefix, seed=2)
    after = read_all(prefix)
    np.testing.assert_array_equal(after, expected(prefix))
    assert before.shape != after.shape or (before != after).any()
    remove_plans(prefix)
    assert not plan_path(prefix, LENGTH).exists()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = megadeberta.data.packing_plan._make

    def refused(path: Path, *arguments: object) -> None:
        if path.parent == prefix.parent:
            raise StorageError("read-only")
        real(path, *arguments)

    monkeypatch.setattr(megadeberta.data.packing_plan, "_make", refused)
    np.testing.assert_array_equal(read_all(prefix), expected(prefix))
    assert not plan_path(prefix, LENGTH).exists()


def test_a_damaged_plan_is_made_again_or_named_and_never_followed(prefix: Path) -> None:
    rows = read_all(prefix)
    path = plan_path(prefix, LENGTH)
    made = path.read_bytes()
    blocks = (len(made) - 32) // (BLOCK_BYTES + 8)
    generator = random.Random(3)
    outcomes = {"right": 0, "named": 0}
    for _ in range(24):
        damaged = bytearray(made)
        kind = generator.choice(["flip", "cut", "zero", "grow"])
        place = generator.randrange(len(made))
        if kind == "flip":
            damaged[place] ^= 1 << generator.randrange(8)
        elif kind == "zero":
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        elif kind == "cut":
            del damaged[place:]
        else:
            damaged += b"\0" * 7
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_all(prefix), rows)
            outcomes["right"] += 1
        except DataError as error:
            assert f"s.packing-{LENGTH}: is damaged; remove it" in str(error)
            outcomes["named"] += 1
    assert blocks > 4 and outcomes["right"] > 4 and outcomes["named"] > 4


@pytest.mark.parametrize("place", [48, 56])
def test_a_number_that_would_take_all_memory_takes_none(prefix: Path, place: int) -> None:
    rows = read_all(prefix)
    path = plan_path(prefix, LENGTH)
    damaged = bytearray(path.read_bytes())
    damaged[place : place + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    np.testing.assert_array_equal(read_all(prefix), rows)
