"""Token files behind addresses: the batches of local ones, bounded copies, every fault of the other side in words."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from range_server import counts_of, serving

import megadeberta.remote.files
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data import block_cache
from megadeberta.data.block_cache import BlockCache, CacheSettings
from megadeberta.data.check import check_data
from megadeberta.data.indexed import TokenShard
from megadeberta.data.loader import StepBatch, training_batches, validation_batches
from megadeberta.errors import DataError, StorageError
from megadeberta.remote.path import RemotePath, as_path
from tests.unit.data.small_data import make_data

TOKENS = 40_000
DELAY = 0.002
ALGEBRA = BatchAlgebra(16, 8, 2, 1)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return make_data(tmp_path_factory.mktemp("set"), train_tokens=TOKENS, valid_tokens=900, sequence_length=64)


@pytest.fixture(scope="module")
def address(local: DataConfig) -> Iterator[str]:
    with serving(local.tokenizer.parent, delay=DELAY) as found:
        yield found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cache, "CACHE_BLOCK", 4096)


def behind(address: str, local: DataConfig, cache: Path, **options: object) -> DataConfig:
    names = {"train": f"{address}/train", "valid": f"{address}/valid", "tokenizer": f"{address}/spm.model"}
    return DataConfig.model_validate(local.model_dump() | names | {"remote_cache": cache} | options)


def first_steps(data: DataConfig, count: int) -> list[StepBatch]:
    with training_batches(
        data, ObjectiveConfig(), seed=3, algebra=ALGEBRA, data_rank=0, start_step=0, total_steps=count
    ) as steps:
        return list(steps)


def assert_equal(found: list[StepBatch], expected: list[StepBatch]) -> None:
    batches = zip(
        itertools.chain.from_iterable(step.micro_batches for step in found),
        itertools.chain.from_iterable(step.micro_batches for step in expected),
        strict=True,
    )
    for batch, other in batches:
        assert all((batch[name] == other[name]).all() for name in other)


def wait_until_filled(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(0 not in path.read_bytes() for path in folder.glob("*.have")):
        assert time.monotonic() < deadline, "the local copy does not become complete"
        time.sleep(0.02)


@pytest.mark.parametrize("packing", ["none", "documents"])
@pytest.mark.parametrize("limit", [1 << 30, 5 * 4096, 0], ids=["all fits", "a part fits", "nothing fits"])
def test_batches_are_those_of_local_files(
    local: DataConfig, address: str, tmp_path: Path, packing: str, limit: int
) -> None:
    here = local.model_copy(update={"packing": packing})
    there = behind(address, here, tmp_path, remote_cache_bytes=limit)
    assert check_data(there, 512) == check_data(here, 512)
    for _ in range(2):  # while copies arrive, and when they are there
        assert_equal(first_steps(there, 12), first_steps(here, 12))
        wait_until_filled(tmp_path)
    kept = sum(path.stat().st_size for path in tmp_path.glob("*.blocks"))
    assert kept == min(2 * TOKENS, limit)
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in tmp_path.glob("*.blocks"))
    options = {"eval_sequences": 9, "algebra": ALGEBRA, "data_rank": 0}
    for batch, other in zip(
        validation_batches(there, ObjectiveConfig(), **options),
        validation_batches(here, ObjectiveConfig(), **options),
        strict=True,
    ):
        assert all((batch[name] == other[name]).all() for name in other)


def test_worker_processes_read_the_same(local: DataConfig, address: str, tmp_path: Path) -> None:
    there = behind(address, local, tmp_path, loader_workers=2, remote_cache_bytes=5 * 4096)
    assert_equal(first_steps(there, 6), first_steps(local, 6))


def test_a_step_asks_for_all_it_needs_at_once_and_not_again_after_a_read_ahead(
    local: DataConfig, tmp_path: Path
) -> None:
    cache = CacheSettings(tmp_path, 0)
    with (
        serving(local.tokenizer.parent, delay=0.02) as slow,
        TokenShard.open(as_path(f"{slow}/train"), cache=cache) as shard,
    ):
        runs = [(start, start + 62) for start in range(0, 62 * 256, 62)]
        shard.read_runs(runs)
        assert counts_of(slow).most_waiting >= 16
        before = counts_of(slow).requests
        shard.read_ahead(runs)
        while counts_of(slow).requests == before:
            time.sleep(0.05)
        _wait_until_idle(slow)
        asked = counts_of(slow).requests
        shard.read_runs(runs)
        assert counts_of(slow).requests == asked


def _wait_until_idle(address: str) -> None:
    deadline, before = time.monotonic() + 60, -1
    while (now := counts_of(address)).waiting or now.requests != before:
        assert time.monotonic() < deadline
        before = now.requests
        time.sleep(0.1)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_refused(
    local: DataConfig, address: str, tmp_path: Path
) -> None:
    cache = CacheSettings(tmp_path / "cache", 1 << 30)
    with TokenShard.open(as_path(f"{address}/train"), cache=cache) as shard, TokenShard.open(local.train) as here:
        shard.read_tokens(0, 1)
        wait_until_filled(cache.folder)
        (blocks,) = cache.folder.glob("*.blocks")
        content = bytearray(blocks.read_bytes())
        content[4096 + 11] ^= 1
        blocks.write_bytes(content)
        assert np.array_equal(shard.read_tokens(1000, 9000), here.read_tokens(1000, 9000))
    memory = fsspec.filesystem("memory")
    for suffix in ("bin", "sum", "idx", "json"):
        memory.pipe(f"/damaged/train.{suffix}", (local.train.parent / f"train.{suffix}").read_bytes())
    changed = bytearray(memory.cat("/damaged/train.bin"))
    changed[4096 + 11] ^= 1
    memory.pipe("/damaged/train.bin", bytes(changed))
    with (
        TokenShard.open(as_path("memory://damaged/train"), cache=CacheSettings(tmp_path / "new", 0)) as shard,
        pytest.raises(DataError, match=r"memory://damaged/train\.bin: bytes \[4096, 6144\).*the object changed"),
    ):
        shard.read_tokens(1000, 9000)


def test_faults_of_the_other_side_are_one_line(
    local: DataConfig, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheSettings(tmp_path, 0)
    with pytest.raises(DataError, match=rf"{address}/none: no shard here \(no none\.json\)"):
        TokenShard.open(as_path(f"{address}/none"), cache=cache)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/train\.bin: cannot be reached .*check the address"):
        TokenShard.open(as_path("http://127.0.0.1:9/train"), cache=cache)
    with serving(local.tokenizer.parent, delay=0) as other:
        shard = TokenShard.open(as_path(f"{other}/train"), cache=cache)
    with shard, pytest.raises(DataError, match=r"/train\.bin: cannot be reached .*run the same command again"):
        shard.read_tokens(0, 100)
    memory = fsspec.filesystem("memory")
    for suffix in ("bin", "sum", "idx", "json"):
        content = (local.train.parent / f"train.{suffix}").read_bytes()
        memory.pipe(f"/short/train.{suffix}", content[:-2] if suffix == "bin" else content)
    with pytest.raises(DataError, match=r"memory://short/train\.bin: 79998 bytes, the manifest says 80000.*changed"):
        TokenShard.open(as_path("memory://short/train"), cache=cache)
    monkeypatch.setattr(megadeberta.remote.files, "find_spec", lambda name: None if name == "s3fs" else name)
    with pytest.raises(DataError, match=r"s3://bucket/train\.\w+: needs s3fs: pip install 'megadeberta\[remote\]'"):
        TokenShard.open(as_path("s3://bucket/train"), cache=cache)
    with pytest.raises(StorageError, match="cannot write"):
        TokenShard.open(as_path(f"{address}/train"), cache=CacheSettings(local.tokenizer / "none", 1 << 20))


def test_the_folder_of_copies_keeps_its_limit_and_what_is_in_use(tmp_path: Path) -> None:
    settings = CacheSettings(tmp_path, 10 * 4096)

    def reserved(name: str, blocks: int) -> int:
        opened = BlockCache.open(settings, name, blocks * 4096)
        found.append(opened)
        return opened.reserved // 4096 if opened else 0

    found: list[BlockCache | None] = []
    assert [reserved("old", 6), reserved("used", 4), reserved("none", 1)] == [6, 4, 0]
    old = found[0]
    assert old is not None
    old.close()
    assert reserved("new", 2) == 2  # of what nobody has open, the end
    sizes = {path.stem: path.stat().st_size // 4096 for path in tmp_path.glob("*.blocks")}
    assert sizes == {"old": 4, "used": 4, "new": 2}
    assert reserved("new-too", 9) == 4
    assert sorted(path.stem for path in tmp_path.glob("*.have")) == ["new", "new-too", "used"]
    for opened in found:
        if opened:
            opened.close()
    settings = CacheSettings(tmp_path, 20 * 4096)
    assert reserved("new-too", 9) == 9  # grows with the limit


def test_recipes_keep_addresses_and_a_folder_behind_one_stands_for_its_files(local: DataConfig) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("train", "valid"):
        for suffix in ("bin", "sum", "idx", "json"):
            memory.pipe(f"/whole/{name}.{suffix}", (local.train.parent / f"{name}.{suffix}").read_bytes())
    memory.pipe("/whole/tokenizer/spm.model", local.tokenizer.read_bytes())
    data = DataConfig.model_validate({"folder": "memory://whole", "sequence_length": 64})
    assert isinstance(data.train, RemotePath) and isinstance(data.tokenizer, RemotePath)
    written = data.model_dump(mode="json")
    assert (written["train"], written["valid"]) == ("memory://whole/train", "memory://whole/valid")
    assert DataConfig.model_validate(written) == data
    assert check_data(data, 512) == check_data(local, 512)
