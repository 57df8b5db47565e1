"""Checks of the data section before any process group exists: cheap, without torch, the same on every rank."""

from dataclasses import dataclass
from pathlib import Path

from megadeberta.config.data import DataConfig
from megadeberta.data.indexed import TokenShard, shard_file
from megadeberta.data.sequences import open_reader
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataFacts:
    """What the shards and the tokenizer hold. Two runs whose facts differ do not see the same samples."""

    tokenizer_sha256: str
    num_pieces: int
    mask_id: int
    train_content: str  # fingerprints of the shards
    valid_content: str | None
    train_tokens: int
    train_chunks: int  # sequences an epoch
    valid_tokens: int
    valid_chunks: int


def missing_files(data: DataConfig) -> list[Path]:
    """What the data section names and is not there."""
    prefixes = [data.train] if data.valid is None else [data.train, data.valid]
    wanted = [shard_file(prefix, suffix) for prefix in prefixes for suffix in ("json", "idx", "bin")]
    return [path for path in (*wanted, data.tokenizer) if not path.exists()]


def check_data(data: DataConfig, vocab_size: int) -> DataFacts:
    """Check shards against tokenizer, and tokenizer against the model's vocabulary.

    Raises:
        DataError: a shard or the tokenizer is missing, damaged or empty, or they do not belong together.
        ConfigError: ``vocab_size`` (model.vocab_size) is too small.
    """
    train, tokenizer = _check_shard(data.train, data.tokenizer)
    valid = None if data.valid is None else _check_shard(data.valid, data.tokenizer)[0]
    valid_tokens = valid.num_tokens if valid else 0
    if tokenizer.vocab_size_needed > vocab_size:
        rounded = -(-tokenizer.vocab_size_needed // 64) * 64
        raise ConfigError(
            f"model.vocab_size={vocab_size} is too small for {data.tokenizer}: {tokenizer.num_pieces} pieces and "
            f"[MASK] need {tokenizer.vocab_size_needed}; set model.vocab_size={rounded} (a multiple of 64 is fastest)"
        )
    return DataFacts(
        tokenizer_sha256=tokenizer.sha256,
        num_pieces=tokenizer.num_pieces,
        mask_id=tokenizer.mask_id,
        train_content=train.content,
        valid_content=valid.content if valid else None,
        train_tokens=train.num_tokens,
        train_chunks=_count_sequences(data.train, data),
        valid_tokens=valid_tokens,
        valid_chunks=0 if data.valid is None else _count_sequences(data.valid, data),
    )


def _count_sequences(prefix: Path, data: DataConfig) -> int:
    reader = open_reader(prefix, data)
    reader.close()
    return reader.num_chunks


def _check_shard(prefix: Path, tokenizer_path: Path) -> tuple[ShardManifest, SentencePieceTokenizer]:
    with TokenShard.open(prefix) as shard:
        manifest = shard.manifest
    tokenizer = SentencePieceTokenizer.load(tokenizer_path, expected_sha256=manifest.tokenizer_sha256)
    if not manifest.num_tokens:
        raise DataError(f"the shard {prefix} holds no tokens; prepare it again from a corpus that is not empty")
    if manifest.max_token_id >= tokenizer.num_pieces:
        raise DataError(
            f"the shard {prefix} holds token id {manifest.max_token_id}, but {tokenizer_path} has ids up to "
            f"{tokenizer.num_pieces - 1}; prepare the shard again with this tokenizer"
        )
    return manifest, tokenizer
