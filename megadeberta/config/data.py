"""The data and objective sections."""

from pathlib import Path

from pydantic import Field, model_validator

from megadeberta.config.section import Section


class DataConfig(Section):
    """Where the token shards are and how they are cut into sequences. Relative paths start at the working folder."""

    train: Path = Field(description="shard prefix: PREFIX.bin, PREFIX.idx and PREFIX.json, made by `megadeberta prep`")
    valid: Path | None = Field(None, description="shard prefix of the held-out documents; null = no validation")
    tokenizer: Path = Field(description="the spm.model the shards were made with")
    sequence_length: int = Field(512, ge=8, description="tokens a sequence, [CLS] and [SEP] included")
    loader_workers: int = Field(1, ge=0, description="processes that mask batches ahead of the step; 0 = in line")


class ObjectiveConfig(Section):
    """Masked language modelling: which tokens are hidden, and how."""

    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of the tokens that become targets")
    mask_token_prob: float = Field(0.8, ge=0, le=1, description="share of the targets replaced by [MASK]")
    random_token_prob: float = Field(0.1, ge=0, le=1, description="share replaced by a random piece; the rest is kept")
    max_gram: int = Field(3, ge=1, le=8, description="longest run of words masked together; drawn with weight 1/n")
    whole_word: bool = Field(True, description="mask whole SentencePiece words; false = every piece on its own")

    @model_validator(mode="after")
    def _check_shares(self) -> "ObjectiveConfig":
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ValueError(
                f"objective.mask_token_prob + random_token_prob = {self.mask_token_prob + self.random_token_prob:g}, "
                "which is more than 1; what is left over is the share of targets kept unchanged"
            )
        return self
