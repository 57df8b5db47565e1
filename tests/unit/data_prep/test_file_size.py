"""Sets of several files: none above the limit, each whole by itself, together the bytes and samples of one."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from rich.console import Console

from megadeberta.config.data import DataConfig
from megadeberta.data.check import check_data
from megadeberta.data.indexed import TokenShard
from megadeberta.data.missing import find_missing
from megadeberta.data.samples import TrainingSamples
from megadeberta.data_prep.derived_sets import Target, merge_sets
from megadeberta.data_prep.finished_sets import FinishedSet
from megadeberta.data_prep.inspection import set_statistics
from megadeberta.data_prep.merge_machines import merge_machines
from megadeberta.data_prep.options import PrepOptions, SplitOptions, VocabularyOptions, parse_size
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SOTU

LIMIT = 12_000
SPLIT = SplitOptions(fraction=0.1)


def run(output: Path, model: Path, **options: Any) -> None:
    prepared = PrepOptions((SOTU,), output, VocabularyOptions(tokenizer=model), split=SPLIT, **options)
    prepare(prepared, console=Console(quiet=True), plot=lambda folder, lengths: None)


@pytest.fixture(scope="module")
def sets(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one`` and ``several``."""
    folder, model = tmp_path_factory.mktemp("sets"), prepared / "tokenizer" / "spm.model"
    run(folder / "one", model)
    run(folder / "several", model, max_file_bytes=LIMIT)
    return folder


def numbered_in(folder: Path, split: str = "train") -> list[Path]:
    return [folder / path.stem for path in sorted(folder.glob(f"{split}-*.idx"))]


def test_no_file_is_above_the_limit_and_each_is_whole_by_itself(sets: Path) -> None:
    prefixes = numbered_in(sets / "several")
    assert len(prefixes) > 10 and [prefix.name for prefix in prefixes[:2]] == ["train-00000", "train-00001"]
    for suffix in ("bin", "idx", "sum"):
        sizes = [prefix.with_suffix(f".{suffix}").stat().st_size for prefix in prefixes]
        assert max(sizes) <= LIMIT and not (sets / "several" / f"train.{suffix}").exists()
    with TokenShard.open(sets / "one" / "train") as one:
        number = 0
        for prefix in prefixes:
            with TokenShard.open(prefix, verify_hash=True) as part:
                for place in range(part.num_documents):
                    assert np.array_equal(part.document(place), one.document(number + place))
                number += part.num_documents
        assert number == one.num_documents


def test_together_they_are_the_one_file(sets: Path) -> None:
    manifests = [json.loads((sets / name / "train.json").read_bytes()) for name in ("one", "several")]
    assert "files" not in manifests[0]
    for name in ("content", "bin_sha256", "idx_sha256", "num_tokens", "num_documents", "bin_bytes", "sources"):
        assert manifests[0][name] == manifests[1][name]
    assert manifests[1]["options"] == manifests[0]["options"] | {"max_file_bytes": LIMIT}
    assert verify_set(sets / "several").shards["train"].content == manifests[0]["content"]
    with (
        TokenShard.open(sets / "one" / "train") as one,
        TokenShard.open(sets / "several" / "train", verify_hash=True) as several,
    ):
        assert np.array_equal(one.document_offsets, several.document_offsets)
        assert np.array_equal(one.read_tokens(0, one.num_tokens), several.read_tokens(0, one.num_tokens))
        assert np.array_equal(one.document(11), several.document(11))
        assert several.read_runs([(7, 7)])[0].size == 0
        with pytest.raises(DataError, match="asked, the shard has"):
            several.read_tokens(0, one.num_tokens + 1)


@pytest.mark.parametrize("packing", ["none", "documents"])
def test_samples_are_those_of_one_file_also_behind_an_address(sets: Path, tmp_path: Path, packing: str) -> None:
    memory = fsspec.filesystem("memory")
    for path in (sets / "several").glob("train*.*"):
        memory.pipe(f"/several/{path.name}", path.read_bytes())
    options = {"tokenizer": sets / "one" / "tokenizer" / "spm.model", "packing": packing, "sequence_length": 64}
    cache = {"remote_cache": tmp_path, "remote_cache_bytes": 20_000}
    folders = (sets / "one" / "train", sets / "several" / "train", "memory://several/train")
    one, *others = (DataConfig.model_validate({"train": train, **options, **cache}) for train in folders)
    numbers = np.arange(500)
    expected = TrainingSamples(one, 1, ()).read(numbers)
    for other in others:
        assert check_data(other, 2000) == check_data(one, 2000)
        samples = TrainingSamples(other, 1, ())
        samples.read_ahead(numbers)
        assert all(np.array_equal(found, right) for found, right in zip(samples.read(numbers), expected, strict=True))
    assert find_missing(others[0]) == []


def test_a_set_is_read_merged_replaced_and_made_by_several_machines(sets: Path, tmp_path: Path, prepared: Path) -> None:
    quiet, model = Stages(Console(quiet=True)), prepared / "tokenizer" / "spm.model"
    with FinishedSet(sets / "one") as one, FinishedSet(sets / "several") as several:
        found, right = (set_statistics(both, quiet)["train"].to_json() for both in (several, one))
        assert found == right
        merge_sets([several], Target(tmp_path / "again", max_file_bytes=2 * LIMIT), stages=quiet)
        assert 1 < len(numbered_in(tmp_path / "again")) < len(numbered_in(sets / "several"))
        merge_sets([one], Target(tmp_path / "again", overwrite=True), stages=quiet)
    assert verify_set(tmp_path / "again").shards["train"].content == verify_set(sets / "one").shards["train"].content
    assert not numbered_in(tmp_path / "again")
    for number in (1, 2):
        run(tmp_path / f"part-{number}", model, part=(number, 2), max_file_bytes=LIMIT)
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    merge_machines(parts, tmp_path / "merged", console=Console(quiet=True), plot=lambda folder, lengths: None)
    for path in (sets / "several").glob("*.*"):
        if path.name != "report.json" and "packing" not in path.name:
            assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes(), path.name


def test_faults_are_named(sets: Path, tmp_path: Path, prepared: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(sets / "several", folder)
    (folder / "train-00003.bin").unlink()
    data = DataConfig(train=folder / "train", tokenizer=folder / "tokenizer" / "spm.model")
    (missing,) = find_missing(data)
    assert "train-00003.bin of it does not exist" in str(missing)
    for suffix in ("bin", "idx", "sum", "json"):  # a file of another place, whole in itself
        name = f"{{}}.{suffix}"
        shutil.copy(folder / name.format("train-00004"), folder / name.format("train-00003"))
    with pytest.raises(DataError, match=r"train\.json: its file train-00003 is .*prep` again"):
        TokenShard.open(folder / "train")
    payload = bytearray((sets / "several" / "train-00002.bin").read_bytes())
    for suffix in ("bin", "idx", "sum", "json"):
        shutil.copy(sets / "several" / f"train-00003.{suffix}", folder)
    payload[100] ^= 1
    (folder / "train-00002.bin").write_bytes(payload)
    with (
        TokenShard.open(folder / "train") as shard,
        pytest.raises(DataError, match=r"train-00002\.bin: bytes \[0,"),
    ):
        shard.read_tokens(0, shard.num_tokens)
    with pytest.raises(DataError, match="SHA-256"):
        verify_set(folder)
    with pytest.raises(DataError, match=r"a document of .* tokens is .* above the largest file of 100"):
        run(tmp_path / "small", prepared / "tokenizer" / "spm.model", max_file_bytes=100)
    assert not list((tmp_path / "small").glob("*train*"))


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in (None, "1000", "4G", "1.5 MiB", "2k")] == [None, 1000, 4 << 30, 3 << 19, 2048]
    for text in ("", "big", "-1", "0", "4X"):
        with pytest.raises(ConfigError, match=r"--max-file-size=.*such as 4G"):
            parse_size(text)


def test_the_damaged_file_of_several_is_named(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets / "several", tmp_path / "set")
    damaged = tmp_path / "set" / "train-00002.bin"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00002\.bin: SHA-256 .* the tokens changed"):
        verify_set(tmp_path / "set")


def test_numbered_files_of_unknown_origin_are_not_replaced_unasked(sets: Path, prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    shutil.copytree(sets / "several", output)
    (output / "train.json").unlink()
    (output / "valid.json").unlink()
    with pytest.raises(DataError, match=r"already has train-00000\.bin, .* and no manifest .* or --overwrite"):
        run(output, prepared / "tokenizer" / "spm.model", max_file_bytes=LIMIT)
    assert numbered_in(output) and not (output / "train.json").exists()


def test_what_is_left_of_a_run_that_was_killed_at_its_very_end_is_removed(sets: Path, prepared: Path) -> None:
    (sets / "several" / ".parts" / "x").mkdir(parents=True)
    run(sets / "several", prepared / "tokenizer" / "spm.model", max_file_bytes=LIMIT)
    assert not (sets / "several" / ".parts").exists()
