"""The data section."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from megadeberta.config.blend import DataPath, SourceName, TrainSource
from megadeberta.config.first_problem import hidden
from megadeberta.config.section import Section
from megadeberta.config.set_files import TOKENIZER_FOLDER, TRAIN_NAME, VALID_NAME, shard_exists, tokenizer_in
from megadeberta.remote.path import as_path

DEFAULT_CACHE_BYTES = 16 << 30
SHORTEST_SEQUENCE = 8
"""Tokens, [CLS] and [SEP] included."""
_OF_FOLDER = ("train", "valid", "tokenizer")


def expand_folder(section: Mapping[str, Any]) -> dict[str, Any]:
    """A data section with train, valid and tokenizer in place of ``folder``; valid is null where none was prepared.

    Raises:
        ValueError: ``folder`` and one of the keys that it stands for are given.
    """
    values = dict(section)
    folder = values.pop("folder", None)
    if folder is None:
        return values
    if not isinstance(folder, str | Path) or not str(folder):
        raise ValueError(f"data.folder={folder!r} is no path; give the --output folder of `megadeberta prep`")
    given = [key for key in _OF_FOLDER if values.get(key) is not None]
    if given:
        raise ValueError(
            f"data.folder={folder} and data.{given[0]}={values[given[0]]} are given, and the folder names "
            "data.train, data.valid and data.tokenizer; keep the folder, or those"
        )
    path = as_path(folder)
    has_no_valid = shard_exists(path / TRAIN_NAME) and not shard_exists(path / VALID_NAME)
    found = {
        "train": str(path / TRAIN_NAME),
        "valid": None if has_no_valid or "valid" in values else str(path / VALID_NAME),
        "tokenizer": str(tokenizer_in(path / TOKENIZER_FOLDER)),
    }
    return values | found


def _how_many(value: Any) -> str:
    return hidden("several") if isinstance(value, Mapping) else hidden("one")


_One = Annotated[DataPath, Tag(hidden("one"))]
_TrainSources = Annotated[dict[SourceName, TrainSource], Field(min_length=1), Tag(hidden("several"))]
_ValidSources = Annotated[dict[SourceName, DataPath], Field(min_length=1), Tag(hidden("several"))]


class DataConfig(Section):
    """Where the token files are and how they are cut into sequences.

    Relative paths start at the working folder; a path may be an address that fsspec knows (``s3://bucket/set/train``).
    """

    folder: Path | None = Field(
        None,
        exclude=True,  # a resolved recipe has the three paths
        description="the --output folder of `megadeberta prep`: stands for train, valid and tokenizer",
    )
    train: Annotated[_One | _TrainSources, Discriminator(_how_many)] = Field(
        description="shard prefix: PREFIX.bin, PREFIX.idx and PREFIX.json, made by `megadeberta prep`; or several by "
        'name, mixed: {"en": {"prefix": "corpora/en/train", "weight": 2}, ...}'
    )
    temperature: float | None = Field(
        None, gt=0, description="of a blend without weights: a source of n tokens gets n^(1/temperature) of the samples"
    )
    valid: Annotated[_One | _ValidSources, Discriminator(_how_many)] | None = Field(
        None, description='shard prefix of the held-out documents, or several: {"en": PREFIX, ...}; null = none'
    )
    tokenizer: DataPath = Field(description="the spm.model or tokenizer.json the shards were made with")
    packing: Literal["none", "documents"] = Field(
        "none",
        description="none: documents laid end to end and cut; documents: each with its own [CLS] and [SEP], and "
        "attention, positions and convolution that stay inside it",
    )
    sequence_length: int = Field(512, ge=SHORTEST_SEQUENCE, description="tokens a sequence, [CLS] and [SEP] included")
    remote_cache: Path | None = Field(
        None,
        description="folder for local copies of token files at an address such as s3://bucket/set/train; null = "
        "megadeberta/remote in the user's folder for caches",
    )
    remote_cache_bytes: int = Field(
        DEFAULT_CACHE_BYTES,
        ge=0,
        description="most bytes of tokens in that folder, of all runs of a machine; what has no room is fetched for "
        "each sequence",
    )
    loader_workers: int = Field(
        1, ge=0, le=1024, description="processes that mask batches ahead of the step; 0 = in line"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_folder(cls, values: Any) -> Any:
        return expand_folder(values) if isinstance(values, Mapping) else values

    @property
    def is_blend(self) -> bool:
        """Whether the training data has named sources."""
        return not isinstance(self.train, Path)

    @property
    def train_prefixes(self) -> dict[str, Path]:
        """Training token files by name, in the order of the names; the only one has the name ""."""
        if isinstance(self.train, Path):
            return {"": self.train}
        return {name: self.train[name].prefix for name in sorted(self.train)}

    @property
    def valid_prefixes(self) -> dict[str, Path]:
        """Validation token files by name, in the order of the names; the only one has the name ""."""
        if self.valid is None:
            return {}
        if isinstance(self.valid, Path):
            return {"": self.valid}
        return {name: self.valid[name] for name in sorted(self.valid)}

    @model_validator(mode="after")
    def _has_one_rule(self) -> Self:
        if isinstance(self.train, Path):
            if self.temperature is not None:
                raise ValueError(
                    f"data.temperature={self.temperature:g} is for several sources, and data.train is one prefix; "
                    'leave it out or name the sources: {"en": {"prefix": ...}, ...}'
                )
            return self
        given = {name: source.model_dump(include={"weight", "epochs", "tokens"}) for name, source in self.train.items()}
        settings = {name: [key for key, value in values.items() if value is not None] for name, values in given.items()}
        for name, keys in settings.items():
            if len(keys) > 1:
                raise ValueError(f"data.train.{name}: {' and '.join(keys)} are given; keep one of them")
            if keys and self.temperature is not None:
                raise ValueError(
                    f"data.temperature={self.temperature:g} and data.train.{name}.{keys[0]} are given: a temperature "
                    "makes the weights itself; keep one of them"
                )
        kinds = {name: keys[0] if keys else "nothing" for name, keys in settings.items()}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{name}: {kinds[name]}" for name in sorted(kinds))
            raise ValueError(f"data.train: all sources take the same of weight, epochs and tokens; found {listed}")
        return self
