"""Data that does not fit together is refused before a process group exists, with one clear line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from megadeberta.config.batches import BatchSizes
from megadeberta.config.blend import TrainSource
from megadeberta.config.data import DataConfig
from megadeberta.data.blend_history import Stretch, continue_blend
from megadeberta.data.check import check_data
from megadeberta.data.samples import TrainingSamples
from megadeberta.data.shard_files import SUFFIXES
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import ConfigError, DataError
from tests.data_fixtures import SPECIAL_IDS, SPECIAL_NAMES
from tests.unit.data.small_data import make_data, train_tokenizer, write_shard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return make_data(tmp_path_factory.mktemp("data"), train_tokens=1000, valid_tokens=50, sequence_length=32)


def test_facts_count_tokens_and_sequences(data: DataConfig) -> None:
    facts = check_data(data, 301)
    assert (facts.num_pieces, facts.mask_id) == (300, 300)
    assert (facts.train_tokens, facts.train_chunks) == (1000, 34)  # 30 tokens each, the last 10
    assert (facts.valid[""].tokens, facts.valid_chunks) == (50, 2)
    assert facts.fingerprint["train"] == facts.train_content != facts.valid[""].content


def test_validation_data_may_be_missing(data: DataConfig) -> None:
    facts = check_data(data.model_copy(update={"valid": None}), 301)
    assert (facts.valid, facts.valid_chunks) == ({}, 0)


def test_vocabulary_too_small_for_the_mask_token_names_the_size_needed(data: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size=300 is too small.*need 301; set .*=384, or auto"):
        check_data(data, 300)


def test_shard_of_another_tokenizer_is_refused(data: DataConfig, tmp_path: Path) -> None:
    other = train_tokenizer(tmp_path, vocab_size=200, **SPECIAL_IDS, **SPECIAL_NAMES)
    with pytest.raises(DataError, match="the shards were made with another tokenizer"):
        check_data(data.model_copy(update={"tokenizer": other}), 301)


def test_validation_shard_of_another_tokenizer_is_refused(data: DataConfig, tmp_path: Path) -> None:
    other = SentencePieceTokenizer.load(train_tokenizer(tmp_path, vocab_size=200, **SPECIAL_IDS, **SPECIAL_NAMES))
    write_shard(tmp_path / "valid", other, num_tokens=50)
    with pytest.raises(DataError, match="the shards were made with another tokenizer"):
        check_data(data.model_copy(update={"valid": tmp_path / "valid"}), 301)


def test_one_changed_bit_of_the_tokenizer_is_refused(data: DataConfig, tmp_path: Path) -> None:
    content = bytearray(data.tokenizer.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(DataError, match="the shards were made with another tokenizer"):
        check_data(data.model_copy(update={"tokenizer": tmp_path / "spm.model"}), 301)


def test_empty_shard_is_refused(data: DataConfig, tmp_path: Path) -> None:
    write_shard(tmp_path / "train", SentencePieceTokenizer.load(data.tokenizer), num_tokens=0)
    with pytest.raises(DataError, match=r"the shard .*train holds no tokens; prepare it again"):
        check_data(data.model_copy(update={"train": tmp_path / "train"}), 301)


def test_token_ids_above_the_vocabulary_are_refused(data: DataConfig, tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(data.tokenizer)
    with ShardWriter(tmp_path / "train", dtype=np.dtype(np.uint16)) as writer:
        writer.add_document([5, 300])
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    with pytest.raises(DataError, match=r"holds token id 300, but .*spm\.model has ids up to 299"):
        check_data(data.model_copy(update={"train": tmp_path / "train"}), 301)


def test_missing_shard_and_missing_tokenizer_are_named(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no shard here"):
        check_data(data.model_copy(update={"train": tmp_path / "nowhere"}), 301)
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*nowhere"):
        check_data(data.model_copy(update={"tokenizer": tmp_path / "nowhere"}), 301)


def test_cut_shard_is_refused(data: DataConfig, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        shutil.copy(f"{data.train}.{suffix}", tmp_path / f"train.{suffix}")
    (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.bin: 1998 bytes, the manifest says 2000"):
        check_data(data.model_copy(update={"train": tmp_path / "train"}), 301)


def _blend(data: DataConfig, **prefixes: Path) -> DataConfig:
    return data.model_copy(update={"train": {name: TrainSource(prefix=prefix) for name, prefix in prefixes.items()}})


def test_facts_of_several_sources_are_by_name(data: DataConfig) -> None:
    facts = check_data(_blend(data, b=data.train, a=data.valid), 301)
    assert {name: (source.tokens, source.sequences) for name, source in facts.train.items()} == {
        "a": (50, 2),
        "b": (1000, 34),
    }
    assert (facts.train_tokens, facts.train_chunks) == (1050, 36)
    other = check_data(_blend(data, b=data.valid, a=data.train), 301)
    assert facts.train_content != other.train_content
    assert facts.fingerprint == other.fingerprint  # what a blend is made of may change in a run


def test_sources_of_two_tokenizers_are_refused_before_any_is_opened(data: DataConfig, tmp_path: Path) -> None:
    other = SentencePieceTokenizer.load(train_tokenizer(tmp_path, vocab_size=200, **SPECIAL_IDS, **SPECIAL_NAMES))
    write_shard(tmp_path / "other", other, num_tokens=50)
    (tmp_path / "other.bin").unlink()
    with pytest.raises(DataError, match=r"another tokenizer each: .*train names SHA-256 .*other .*prepare one of them"):
        check_data(_blend(data, a=data.train, b=tmp_path / "other"), 301)


def test_a_missing_source_is_named(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no shard here"):
        check_data(_blend(data, a=data.train, b=tmp_path / "nowhere"), 301)


def test_one_token_file_under_two_names_is_refused(data: DataConfig, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        shutil.copy(f"{data.train}.{suffix}", tmp_path / f"copy.{suffix}")
    with pytest.raises(DataError, match=r"data\.train\.b and data\.train\.a are the same token file"):
        check_data(_blend(data, a=data.train, b=tmp_path / "copy"), 301)


def test_sources_may_have_different_types_of_ids(data: DataConfig, tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(data.tokenizer)
    with ShardWriter(tmp_path / "wide", dtype=np.dtype(np.int32)) as writer:
        writer.add_document([5, 7, 9])
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    blend = _blend(data, a=data.train, b=tmp_path / "wide")
    assert check_data(blend, 301).train["b"].tokens == 3
    stretch = Stretch(0, 1000, BatchSizes((), 8))
    segments = continue_blend(blend, check_data(blend, 301).train, saved=(), stretch=stretch)
    sequences, _ = TrainingSamples(blend, 1, segments).read(np.arange(400))
    assert (sequences[:, :5] == [1, 5, 7, 9, 2]).all(1).any()
