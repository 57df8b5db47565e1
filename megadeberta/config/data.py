"""The data section."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from megadeberta.config.section import Section

TOKENIZER_FILE = "spm.model"
"""The SentencePiece model, in every folder this package writes: of prepared data, of a checkpoint, of weights."""


class DataConfig(Section):
    """Where the token files are and how they are cut into sequences. Relative paths start at the working folder."""

    train: Path = Field(description="shard prefix: PREFIX.bin, PREFIX.idx and PREFIX.json, made by `megadeberta prep`")
    valid: Path | None = Field(None, description="shard prefix of the held-out documents; null = no validation")
    tokenizer: Path = Field(description="the spm.model the shards were made with")
    packing: Literal["none", "documents"] = Field(
        "none",
        description="none: documents laid end to end and cut; documents: each with its own [CLS] and [SEP], and "
        "attention, positions and convolution that stay inside it",
    )
    sequence_length: int = Field(512, ge=8, description="tokens a sequence, [CLS] and [SEP] included")
    loader_workers: int = Field(1, ge=0, description="processes that mask batches ahead of the step; 0 = in line")
