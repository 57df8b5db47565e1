"""A tokenizer and shards small enough to make in every test module."""

from pathlib import Path

import numpy as np
import sentencepiece

from megadeberta.config.data import DataConfig
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.data.tokenizer import SentencePieceTokenizer
from tests.data_fixtures import SOTU, SPECIAL_IDS, SPECIAL_NAMES


def train_tokenizer(folder: Path, **options: object) -> Path:
    """Train 300 pieces on a part of the text; with SentencePiece's own special ids unless told otherwise."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(SOTU),
        input_sentence_size=200,
        shuffle_input_sentence=False,  # its shuffling has another seed every time
        model_prefix=str(folder / "spm"),
        minloglevel=2,
        **{"vocab_size": 300, "num_threads": 1, "num_sub_iterations": 1} | options,
    )
    return folder / "spm.model"


def write_shard(prefix: Path, tokenizer: SentencePieceTokenizer, *, num_tokens: int, seed: int = 1) -> np.ndarray:
    """Random ordinary pieces in documents of 100 tokens and a rest; returns all of them, ``[num_tokens]``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    tokens = generator.integers(4, tokenizer.num_pieces, num_tokens)
    with ShardWriter(prefix, dtype=np.dtype(np.uint16)) as writer:
        for start in range(0, num_tokens, 100):
            writer.add_document(tokens[start : start + 100])
        writer.commit(tokenizer_sha256=tokenizer.sha256, tokenizer_pieces=tokenizer.num_pieces)
    return tokens


def make_data(folder: Path, *, train_tokens: int, valid_tokens: int, sequence_length: int) -> DataConfig:
    """A tokenizer with the project's special ids, ``train`` and ``valid``; batches are made in line."""
    path = train_tokenizer(folder, **SPECIAL_IDS, **SPECIAL_NAMES)
    tokenizer = SentencePieceTokenizer.load(path)
    write_shard(folder / "train", tokenizer, num_tokens=train_tokens)
    write_shard(folder / "valid", tokenizer, num_tokens=valid_tokens, seed=2)
    return DataConfig(
        train=folder / "train",
        valid=folder / "valid",
        tokenizer=path,
        sequence_length=sequence_length,
        loader_workers=0,
    )
