"""A folder of `megadeberta prep`, as far as a recipe for it must know it."""

from dataclasses import dataclass
from pathlib import Path

from megadeberta.config.set_files import TOKENIZER_FOLDER, TRAIN_NAME, VALID_NAME, shard_exists, tokenizer_in
from megadeberta.data.check import vocabulary_size
from megadeberta.data.missing import check_prepared_folder
from megadeberta.data.shard_files import shard_file
from megadeberta.data.shard_manifest import read_manifest
from megadeberta.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """What was prepared."""

    folder: Path
    tokens: int
    """Of the training documents."""
    documents: int
    has_valid: bool
    vocabulary: int
    """Rows that a word table for the tokenizer has."""


def read_corpus(folder: Path) -> Corpus:
    """Read the manifest and the tokenizer of a prepared folder.

    Raises:
        DataError: it is no such folder, or not a finished one.
    """
    check_prepared_folder(folder)
    manifest = read_manifest(shard_file(folder / TRAIN_NAME, "json"))
    if not manifest.num_tokens:
        raise DataError(f"{folder / TRAIN_NAME} holds no tokens; prepare it again from a corpus that is not empty")
    return Corpus(
        folder=folder,
        tokens=manifest.num_tokens,
        documents=manifest.num_documents,
        has_valid=shard_exists(folder / VALID_NAME),
        vocabulary=vocabulary_size(tokenizer_in(folder / TOKENIZER_FOLDER)),
    )
