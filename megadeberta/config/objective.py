"""The objective section: what is predicted, from what, and how the losses are weighed."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from megadeberta.config.model import ModelConfig
from megadeberta.config.section import Section

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""The parts of a model for replaced token detection; names of their layers and parameters begin with them."""
_RTD_MASKING = {"mask_token_prob": 1.0, "random_token_prob": 0.0, "max_gram": 1, "whole_word": False}


class RtdConfig(Section):
    """Replaced token detection (v3): a generator fills the masked tokens, the model says which ones it replaced."""

    loss_weight: float = Field(50.0, gt=0, description="lambda: total = MLM loss + lambda x RTD loss")
    embedding_sharing: Literal["gdes", "es", "nes"] = Field(
        "gdes", description="gdes: stop_gradient(generator's table) + own difference; es: one table; nes: two tables"
    )
    generator_layers: int | None = Field(None, gt=0, description="depth of the generator; null = half of the model's")
    generator_hidden_size: int | None = Field(
        None,
        gt=0,
        description="width of the generator's layers, a multiple of the head size; feed-forward and heads in "
        "proportion; null = the model's",
    )
    sampling_temperature: float = Field(1.0, gt=0, description="of the generator when it draws replacements")
    decoupled: bool = Field(
        False, description="two updates a step, generator first, each with its own clipping; false = one joint update"
    )

    @model_validator(mode="after")
    def _check_sharing(self) -> "RtdConfig":
        if self.decoupled and self.embedding_sharing == "es":
            raise ValueError(
                "objective.rtd.decoupled=true with embedding_sharing='es' would train one table by two optimizer "
                "steps that do not see each other's gradient; use embedding_sharing='gdes', or decoupled=false"
            )
        return self

    def generator(self, model: ModelConfig) -> ModelConfig:
        """The generator's shape: the model's, less deep and perhaps less wide. Raises a validation error if that is no
        model.

        Its heads have the model's size. A table that both parts share has the model's width, and the generator projects
        it to its own (``embedding_size``), as CamemBERTa's does (Antoun et al. 2023).
        """
        changes: dict[str, int] = {"num_hidden_layers": self.generator_layers or max(1, model.num_hidden_layers // 2)}
        width = self.generator_hidden_size or model.hidden_size
        if width != model.hidden_size:
            changes["hidden_size"] = width
            changes["num_attention_heads"] = max(1, width // model.head_size)
            changes["intermediate_size"] = max(1, model.intermediate_size * width // model.hidden_size)
            if self.embedding_sharing != "nes":
                changes["embedding_size"] = model.embedding_width
        return ModelConfig.model_validate(model.model_dump() | changes)

    def discriminator(self, model: ModelConfig) -> ModelConfig:
        """The discriminator's shape: the model's, without the decoder that only predicts tokens."""
        return model.model_copy(update={"enhanced_mask_decoder": False})


class AutoregressiveConfig(Section):
    """Reading from left to right (paper A.4), alone or beside masked language modelling."""

    loss_weight: float = Field(1.0, gt=0, description="mlm_ar: total = MLM loss + this x autoregressive loss")
    share: float = Field(0.5, gt=0, lt=1, description="mlm_ar: share of the sequences that are read left to right")
    prefix_share: float = Field(
        0.0, ge=0, le=1, description="share of those that begin with a prefix seen from both sides (UniLM)"
    )


class MaskRateSchedule(Section):
    """A mask rate that goes from ``objective.mask_rate`` to another one, and stays there."""

    end: float = Field(gt=0, lt=1, description="mask rate from step `steps` on")
    steps: int = Field(gt=0, description="optimizer steps on the way, of the first ones")
    shape: Literal["linear", "cosine"] = Field("linear", description="cosine: slow at both ends")

    def rate(self, start: float, step: int) -> float:
        """The mask rate of step ``step``, counted from 0."""
        done = min(1.0, step / self.steps)
        if self.shape == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2
        return start + (self.end - start) * done


class ObjectiveConfig(Section):
    """What is predicted. With ``rtd`` every chosen piece becomes [MASK], by itself, unless told otherwise."""

    name: str = Field(
        "mlm",
        description="mlm: masked tokens; rtd: replaced tokens (v3); ar: next tokens; mlm_ar: masked and next tokens; "
        "or one that a module of `plugins` registers",
    )
    mask_rate: float = Field(
        0.15, gt=0, lt=1, description="share of the tokens that become targets; [CLS], [SEP], [UNK] and padding cannot"
    )
    mask_rate_schedule: MaskRateSchedule | None = Field(
        None, description="another rate as the run goes on; validation keeps that of mask_rate; null = none"
    )
    mask_token_prob: float = Field(0.8, ge=0, le=1, description="share of the targets replaced by [MASK]")
    random_token_prob: float = Field(0.1, ge=0, le=1, description="share replaced by a random piece; the rest is kept")
    max_gram: int = Field(3, ge=1, le=8, description="longest run of words masked together; drawn with weight 1/n")
    whole_word: bool = Field(
        True, description="mask whole words, of scripts with spaces between them; false = every piece on its own"
    )
    options: dict[str, Any] = Field(
        {}, description="settings of an objective that a module of `plugins` registers; that one checks them"
    )
    rtd: RtdConfig = RtdConfig()
    autoregressive: AutoregressiveConfig = AutoregressiveConfig()

    @model_validator(mode="before")
    @classmethod
    def _rtd_masking(cls, values: Any) -> Any:
        """microsoft/DeBERTa ``rtd_task.py``: all chosen tokens become [MASK], max_gram 1."""
        if isinstance(values, dict) and values.get("name") == "rtd":
            return _RTD_MASKING | values
        return values

    @property
    def mask_rates(self) -> tuple[float, float]:
        """At the start and at the end of the schedule, which goes from the one to the other without leaving them."""
        return self.mask_rate, self.mask_rate_schedule.end if self.mask_rate_schedule else self.mask_rate

    def mask_rate_at(self, step: int) -> float:
        """Of the training batch of step ``step``, counted from 0."""
        schedule = self.mask_rate_schedule
        return schedule.rate(self.mask_rate, step) if schedule else self.mask_rate

    @model_validator(mode="after")
    def _check_shares(self) -> "ObjectiveConfig":
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ValueError(
                f"objective.mask_token_prob + random_token_prob = {self.mask_token_prob + self.random_token_prob:g}, "
                "which is more than 1; what is left over is the share of targets kept unchanged"
            )
        return self


def part_of(parameter: str) -> str:
    """The part a parameter belongs to: generator, discriminator, or "" where the model has no parts."""
    first = parameter.split(".", 1)[0]
    return first if first in (GENERATOR, DISCRIMINATOR) else ""
