"""The plan beside a token file: made once, the same sequences as without it, and never a wrong one."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import megadeberta.data.packing
import megadeberta.data.packing_plan
from megadeberta.data.block_sums import BLOCK_BYTES
from megadeberta.data.indexed import TokenShard
from megadeberta.data.packing import PackedReader, plan_sequences
from megadeberta.data.packing_plan import plan_path, remove_plans
from megadeberta.data.shard_writer import ShardWriter
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
    starts = plan_sequences(ends, LENGTH)
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
    monkeypatch.setattr(megadeberta.data.packing, "plan_sequences", refuse)
    np.testing.assert_array_equal(read_all(prefix), rows)
    assert plan_path(prefix, LENGTH).read_bytes() == made
    assert PackedReader(prefix, LENGTH).read(np.empty(0, np.int64)).shape == (0, LENGTH)
    with pytest.raises(AssertionError, match="planned again"):
        PackedReader(prefix, LENGTH + 1)


def test_processes_that_start_together_make_one_plan(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: object) -> np.ndarray:
        calls.append(1)
        return plan_sequences(*arguments)

    monkeypatch.setattr(megadeberta.data.packing, "plan_sequences", counted)
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
    real: Callable[..., None] = megadeberta.data.packing_plan._write

    def refused(path: Path, *arguments: object) -> None:
        if path.parent == prefix.parent:
            raise StorageError("read-only")
        real(path, *arguments)

    monkeypatch.setattr(megadeberta.data.packing_plan, "_write", refused)
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
