"""Data that does not fit together is refused before a process group exists, with one clear line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from megadeberta.config.data import DataConfig
from megadeberta.data.check import check_data
from megadeberta.data.indexed import SUFFIXES
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
    assert (facts.valid_tokens, facts.valid_chunks) == (50, 2)
    assert facts.train_content != facts.valid_content


def test_validation_data_may_be_missing(data: DataConfig) -> None:
    facts = check_data(data.model_copy(update={"valid": None}), 301)
    assert (facts.valid_content, facts.valid_tokens, facts.valid_chunks) == (None, 0, 0)


def test_vocabulary_too_small_for_the_mask_token_names_the_size_needed(data: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size=300 is too small.*300 pieces.*need 301; set .*=320"):
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
