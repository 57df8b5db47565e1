"""What the files of a prepared set are called, and where links lead; light, for every worker of `prep` to import."""

import os
from pathlib import Path

TOKENIZER_FILE, TOKENIZER_JSON = "spm.model", "tokenizer.json"
"""The tokenizer in every folder that this package writes (of prepared data, of a checkpoint, of weights): a
SentencePiece model, or any other kind. Where both are, as in a Hugging Face folder, the latter was made of the former.
"""
TRAIN_NAME, VALID_NAME = "train", "valid"
"""Of the token files that `megadeberta prep` writes into its folder."""
TOKENIZER_FOLDER = "tokenizer"
"""Where in that folder the tokenizer is."""


def tokenizer_name(content: bytes) -> str:
    """What a tokenizer's file is called in such a folder."""
    return TOKENIZER_JSON if content.lstrip()[:1] == b"{" else TOKENIZER_FILE


def tokenizer_in(folder: Path) -> Path:
    """The tokenizer of a folder that this package wrote; the path of a SentencePiece model where there is none."""
    other = folder / TOKENIZER_JSON
    return other if other.is_file() and not (folder / TOKENIZER_FILE).is_file() else folder / TOKENIZER_FILE


def shard_exists(prefix: Path) -> bool:
    """Whether there is any file of a token file: what is missing of it is another question."""
    return any(prefix.with_name(f"{prefix.name}.{suffix}").exists() for suffix in ("json", "idx", "bin"))


def broken_link(path: Path) -> str:
    """Of a path that does not exist: where it leads to, if it is a link; else nothing."""
    broken = path.is_symlink() and not path.exists()
    return f"; it is a link to {os.readlink(path)}, which does not exist" if broken else ""
