"""Checks of the data section before any process group exists: cheap, without torch, the same on every rank."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megadeberta.config.data import DataConfig
from megadeberta.data.blend_history import SourceFacts
from megadeberta.data.masking import MASKS_VERSION
from megadeberta.data.missing import suggest_path
from megadeberta.data.sequences import open_reader
from megadeberta.data.shard_files import check_prefix, shard_file
from megadeberta.data.shard_manifest import ShardManifest, read_manifest
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.errors import ConfigError, DataError
from megadeberta.layers.vocabulary import rounded_vocabulary


@dataclass(frozen=True)
class DataFacts:
    """What the shards and the tokenizer hold. Two runs whose facts differ do not see the same samples."""

    tokenizer_sha256: str
    num_pieces: int
    mask_id: int
    train: dict[str, SourceFacts]
    """By name; the only one has the name ""."""
    valid: dict[str, SourceFacts]

    @property
    def train_content(self) -> str:
        """Identifies the training data: the fingerprint of the only shard, or of the names and shards of a blend."""
        if "" in self.train:
            return self.train[""].content
        lines = [f"{name} {source.content}\n" for name, source in self.train.items()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides the samples and their masks, by name: every checkpoint of a run must have the same."""
        return {
            # What a blend is made of may change in a run: the checkpoint has it in its segments.
            "train": self.train_content if "" in self.train else "several sources",
            "tokenizer": self.tokenizer_sha256,
            "masks": str(MASKS_VERSION),
        }

    @property
    def train_tokens(self) -> int:
        """Of all sources."""
        return sum(source.tokens for source in self.train.values())

    @property
    def train_chunks(self) -> int:
        """Sequences of an epoch of every source."""
        return sum(source.sequences for source in self.train.values())

    @property
    def valid_chunks(self) -> int:
        """Sequences of all validation shards."""
        return sum(source.sequences for source in self.valid.values())


def vocabulary_size(tokenizer: Path) -> int:
    """What ``model.vocab_size: auto`` stands for.

    Raises:
        DataError: the file is missing or no tokenizer of ours.
    """
    if not tokenizer.exists():
        near = suggest_path(tokenizer)
        hint = f", did you mean {near}?" if near else ""
        raise DataError(f"the tokenizer {tokenizer} does not exist{hint}; `megadeberta prep` makes one with the data")
    return rounded_vocabulary(load_tokenizer(tokenizer).vocab_size_needed)


def check_data(data: DataConfig, vocab_size: int) -> DataFacts:
    """Check shards against tokenizer, and tokenizer against the model's vocabulary.

    Raises:
        DataError: a shard or the tokenizer is missing, damaged or empty, they do not belong together, two sources are
            the same shard, or a model with the tokenizer could not be exported.
        ConfigError: ``vocab_size`` (model.vocab_size) is too small.
    """
    train = {name: _read_manifest(prefix) for name, prefix in data.train_prefixes.items()}
    valid = {name: _read_manifest(prefix) for name, prefix in data.valid_prefixes.items()}
    _check_different(train)
    tokenizer = _check_tokenizer(data, train, valid)
    tokenizer.check_exportable()
    if tokenizer.path.read_bytes() != tokenizer.content:
        raise DataError(
            f"data.tokenizer={data.tokenizer} is not the one file that the token files were made with; set it to the "
            f"{tokenizer.file_name} in the folder tokenizer/ that `megadeberta prep` wrote"
        )
    if tokenizer.vocab_size_needed > vocab_size:
        rounded = rounded_vocabulary(tokenizer.vocab_size_needed)
        raise ConfigError(
            f"model.vocab_size={vocab_size} is too small for {data.tokenizer}: {tokenizer.num_pieces} pieces and "
            f"[MASK] need {tokenizer.vocab_size_needed}; set model.vocab_size={rounded}, or auto, which gives the same"
        )
    return DataFacts(
        tokenizer_sha256=tokenizer.sha256,
        num_pieces=tokenizer.num_pieces,
        mask_id=tokenizer.mask_id,
        train={name: _facts(data.train_prefixes[name], manifest, data) for name, manifest in train.items()},
        valid={name: _facts(data.valid_prefixes[name], manifest, data) for name, manifest in valid.items()},
    )


def _facts(prefix: Path, manifest: ShardManifest, data: DataConfig) -> SourceFacts:
    reader = open_reader(prefix, data)
    reader.close()
    return SourceFacts(manifest.content, manifest.num_tokens, reader.num_chunks)


def _read_manifest(prefix: Path) -> ShardManifest:
    check_prefix(prefix)
    return read_manifest(shard_file(prefix, "json"))


def _check_different(train: Mapping[str, ShardManifest]) -> None:
    names: dict[str, str] = {}
    for name, manifest in train.items():
        other = names.setdefault(manifest.content, name)
        if other != name:
            raise DataError(
                f"data.train.{name} and data.train.{other} are the same token file, so its samples would come twice "
                "an epoch; name it once and give it a larger weight"
            )


def _check_tokenizer(
    data: DataConfig, train: Mapping[str, ShardManifest], valid: Mapping[str, ShardManifest]
) -> VocabularyTokenizer:
    """That every shard is of the one tokenizer, and none empty; nothing but the manifests has been read so far."""
    shards = [(data.train_prefixes[name], manifest) for name, manifest in train.items()]
    shards += [(data.valid_prefixes[name], manifest) for name, manifest in valid.items()]
    first_prefix, first = shards[0]
    for prefix, manifest in shards[1:]:
        if manifest.tokenizer_sha256 != first.tokenizer_sha256:
            raise DataError(
                f"the shards were made with another tokenizer each: {first_prefix} names SHA-256 "
                f"{first.tokenizer_sha256[:16]}…, and {prefix} {manifest.tokenizer_sha256[:16]}…; prepare one of them "
                "again with `megadeberta prep --tokenizer` of the other"
            )
    tokenizer = load_tokenizer(data.tokenizer, expected_sha256=first.tokenizer_sha256)
    for prefix, manifest in shards:
        if not manifest.num_tokens:
            raise DataError(f"the shard {prefix} holds no tokens; prepare it again from a corpus that is not empty")
        if manifest.max_token_id >= tokenizer.num_pieces:
            raise DataError(
                f"the shard {prefix} holds token id {manifest.max_token_id}, but {data.tokenizer} has ids up to "
                f"{tokenizer.num_pieces - 1}; prepare the shard again with this tokenizer"
            )
    return tokenizer
