"""The objectives: which layers a recipe trains, on which targets, towards which losses.

An objective is one object in ``OBJECTIVES``. Data, model, pipeline, plan, logs, plots, reports, evaluation and export
ask it; nothing else compares ``objective.name``. docs/extending.md says how to add one.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from megadeberta.config.first_problem import first_problem
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import rtd_layers, token_model_layers
from megadeberta.layers.layer import Layer
from megadeberta.layers.slots import SPECIAL_TOKENS, most_masked, slots_for

_MLM, _AR = ("mlm_loss", "mlm_accuracy"), ("ar_loss", "ar_accuracy")


@dataclass(frozen=True)
class Update:
    """One update of an optimizer step."""

    part: str | None
    """Of the model; None = all of it."""
    weights: Mapping[str, float]
    """Weight of each loss term in the sum that is minimised."""
    frozen: str | None = None
    """A part that is run and not changed."""

    def changes(self, part: str) -> bool:
        """Whether the parameters of this part, "" in a model without parts, are updated."""
        return self.part in (None, part) and part != self.frozen


class Objective:
    """What a recipe trains. The methods are given the recipe's sections; this class itself is masked tokens."""

    name: str = "mlm"
    """Value of ``objective.name``."""
    title: str = "masked language modelling"
    """For model cards and help."""
    targets: str = "masked"
    """How sequences become inputs and targets: a key of ``data.targets.TARGETS``."""
    batch_fields: tuple[str, ...] = ()
    """Fields of a batch that it needs besides the usual ones; keys of ``batch.FIELDS``."""
    reads_left_to_right: bool = False
    """Some sequences are read in one direction: nothing in the model may show a token the next one."""

    def models(self, model: ModelConfig, settings: ObjectiveConfig) -> dict[str, ModelConfig]:
        """The shape of each part of the model by its name; one part "" where there are none."""
        return {"": model}

    def layers(self, model: ModelConfig, settings: ObjectiveConfig) -> list[Layer]:
        """Every layer that is trained, in order."""
        return token_model_layers(model)

    def loss_weights(self, settings: ObjectiveConfig) -> dict[str, float]:
        """Weight of every loss term in the total, in the order of the layers that compute them."""
        return {"mlm_loss": 1.0}

    def updates(self, settings: ObjectiveConfig) -> tuple[Update, ...]:
        """The updates of one optimizer step, in order."""
        return (Update(None, self.loss_weights(settings)),)

    def targets_per_sequence(self, settings: ObjectiveConfig, length: int) -> float:
        """Rows per full sequence that the decoder over the vocabulary has to compute, on average; of a schedule, on
        average over its steps."""
        return sum(settings.mask_rates) / 2 * (length - SPECIAL_TOKENS)

    def most_targets(self, settings: ObjectiveConfig, length: int) -> int:
        """The same for the sequence of a batch that has most of them."""
        return most_masked(max(settings.mask_rates), length - SPECIAL_TOKENS)

    def check(self, config: RunConfig) -> None:
        """Refuse a recipe that the objective cannot train.

        Raises:
            ConfigError: what was asked, why it does not work and what to do; without the recipe's name.
        """
        if config.objective.options:
            raise ConfigError(
                f"objective.options={config.objective.options!r}: {self.name} has no settings there; remove them"
            )
        if config.training.part != "both" and len(self.models(config.model, config.objective)) == 1:
            raise ConfigError(
                f"training.part={config.training.part!r} is for objective.name='rtd', and {self.name!r} has one part; "
                "leave it out"
            )
        if config.objective.mask_rate_schedule is not None and "mlm_loss" not in self.loss_weights(config.objective):
            raise ConfigError(f"objective.mask_rate_schedule: objective.name={self.name!r} masks nothing; remove it")

    def describe(self, settings: ObjectiveConfig) -> str:
        """One line for a model card."""
        return f"{self.title}, {_masked(settings)} of the tokens masked"

    def slots(self, settings: ObjectiveConfig, length: int) -> int:
        """Q: target rows per sequence of a batch, as the loader makes them."""
        return slots_for(self.most_targets(settings, length))


class ReplacedTokens(Objective):
    """A generator fills the masked tokens, the discriminator says which ones it replaced (v3)."""

    name = "rtd"
    title = "replaced token detection"

    def models(self, model: ModelConfig, settings: ObjectiveConfig) -> dict[str, ModelConfig]:
        """Generator and discriminator."""
        return {GENERATOR: settings.rtd.generator(model), DISCRIMINATOR: settings.rtd.discriminator(model)}

    def layers(self, model: ModelConfig, settings: ObjectiveConfig) -> list[Layer]:
        """Of both parts, in one list."""
        return rtd_layers(model, settings.rtd)

    def loss_weights(self, settings: ObjectiveConfig) -> dict[str, float]:
        """See ``Objective.loss_weights``."""
        return {"mlm_loss": 1.0, "rtd_loss": settings.rtd.loss_weight}

    def updates(self, settings: ObjectiveConfig) -> tuple[Update, ...]:
        """One joint update, or the generator's and then the discriminator's."""
        weights = self.loss_weights(settings)
        if not settings.rtd.decoupled:
            return (Update(None, weights),)
        return (
            Update(GENERATOR, {"mlm_loss": weights["mlm_loss"]}),
            Update(DISCRIMINATOR, {"rtd_loss": weights["rtd_loss"]}),
        )

    def check(self, config: RunConfig) -> None:
        """See ``Objective.check``."""
        super().check(config)
        settings = config.objective.rtd
        if settings.decoupled and config.engine.zero_stage == 3:
            # DeepSpeed 0.19.8, runtime/zero/stage3.py: the flat buffer of gradient partitions is overwritten by a
            # backward pass and never cleared, so the part without one would bring its last gradients to the norm.
            raise ConfigError(
                "objective.rtd.decoupled=true does not work with deepspeed.zero_optimization.stage=3, which "
                "keeps the gradients of the part that an update leaves alone; use stage 2, or decoupled=false"
            )
        _check_part(config)
        width, head = settings.generator_hidden_size, config.model.head_size
        if width is not None and width % head:
            raise ConfigError(
                f"objective.rtd.generator_hidden_size={width} is no multiple of the model's head size {head}; the "
                f"nearest is {max(1, round(width / head)) * head}"
            )
        try:
            settings.generator(config.model)
        except ValidationError as error:
            reason = first_problem(error)
            raise ConfigError(
                f"the generator is no model: {reason}; set objective.rtd.generator_layers"
                f"{', generator_hidden_size or embedding_sharing=nes' if width else ''}"
            ) from None


def _check_part(config: RunConfig) -> None:
    """Refuse to train one part where that would change the other one, or where DeepSpeed cannot."""
    part, sharing = config.training.part, config.objective.rtd.embedding_sharing
    if part == "both":
        return
    asked = f"training.part={part!r}"
    if sharing == "es" or (sharing == "gdes" and part == GENERATOR):
        whose = "both parts have one table" if sharing == "es" else "the discriminator's table adds to the generator's"
        way = (
            "export it (`megadeberta convert export RUN DIR --model generator`) and train it with objective.name=mlm "
            "and training.init_from=DIR"
        )
        raise ConfigError(
            f"{asked} with objective.rtd.embedding_sharing={sharing!r}: {whose}, so the part that is left alone would "
            f"change; {way if part == GENERATOR else 'use gdes or nes'}"
        )
    if config.engine.zero_stage == 3 or config.parallel.pipeline > 1:
        what = "parallel.pipeline" if config.parallel.pipeline > 1 else "deepspeed.zero_optimization.stage=3"
        raise ConfigError(
            f"{asked} does not work with {what}, which waits for gradients of the part without any; use tensor and "
            "data parallelism with stage 2 or less"
        )


class NextTokens(Objective):
    """Every token is the target of the place before it (paper A.4)."""

    name = "ar"
    title = "next tokens, left to right"
    targets = "next_token"
    batch_fields = ("prefix_lengths",)
    reads_left_to_right = True

    def layers(self, model: ModelConfig, settings: ObjectiveConfig) -> list[Layer]:
        """Of both parts, in one list."""
        # A head that may read both ways has both pairs of terms; those without a sequence have no count.
        return token_model_layers(model, terms=_MLM + _AR)

    def loss_weights(self, settings: ObjectiveConfig) -> dict[str, float]:
        """See ``Objective.loss_weights``."""
        return {"ar_loss": 1.0}

    def targets_per_sequence(self, settings: ObjectiveConfig, length: int) -> float:
        """See ``Objective.targets_per_sequence``."""
        return float(self.most_targets(settings, length))

    def most_targets(self, settings: ObjectiveConfig, length: int) -> int:
        """All but [CLS] and [SEP]."""
        return length - SPECIAL_TOKENS

    def check(self, config: RunConfig) -> None:
        """See ``Objective.check``."""
        super().check(config)
        if config.model.conv_kernel_size:
            raise ConfigError(
                f"objective.name={self.name!r} predicts the next token, and with model.conv_kernel_size="
                f"{config.model.conv_kernel_size} the convolution sees it; set model.conv_kernel_size=0"
            )

    def describe(self, settings: ObjectiveConfig) -> str:
        """See ``Objective.describe``."""
        return self.title


class MaskedAndNextTokens(NextTokens):
    """Each sequence is masked, or read from left to right, by a draw of its own."""

    name = "mlm_ar"
    title = "masked language modelling and next tokens"

    def loss_weights(self, settings: ObjectiveConfig) -> dict[str, float]:
        """See ``Objective.loss_weights``."""
        return {"mlm_loss": 1.0, "ar_loss": settings.autoregressive.loss_weight}

    def targets_per_sequence(self, settings: ObjectiveConfig, length: int) -> float:
        """See ``Objective.targets_per_sequence``."""
        fraction = settings.autoregressive.share
        masked = Objective.targets_per_sequence(self, settings, length)
        return fraction * self.most_targets(settings, length) + (1 - fraction) * masked

    def describe(self, settings: ObjectiveConfig) -> str:
        """See ``Objective.describe``."""
        return f"{self.title}, {_masked(settings)} of the tokens of masked sequences"


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (Objective(), ReplacedTokens(), NextTokens(), MaskedAndNextTokens())
}
"""By ``objective.name``. Register others with ``register_objective``."""


def register_objective(objective: Objective) -> None:
    """Add an objective; a module of ``plugins`` calls it.

    Raises:
        ConfigError: another class has the name.
    """
    known = OBJECTIVES.setdefault(objective.name, objective)
    if type(known).__qualname__ != type(objective).__qualname__:
        raise ConfigError(f"objective {objective.name!r} is registered twice; choose another name")
    OBJECTIVES[objective.name] = objective


def objective_of(settings: ObjectiveConfig) -> Objective:
    """The objective that a recipe names.

    Raises:
        ConfigError: there is none of this name.
    """
    if settings.name in OBJECTIVES:
        return OBJECTIVES[settings.name]
    near = difflib.get_close_matches(settings.name.lower(), OBJECTIVES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"objective.name={settings.name!r} is unknown; {hint}known are {', '.join(OBJECTIVES)}; one of your own needs "
        "the module that registers it in plugins"
    )


def _masked(settings: ObjectiveConfig) -> str:
    """``15%``, or ``30% to 15% (linear over 5,000 steps)``."""
    shown, schedule = " to ".join(f"{100 * rate:.4g}%" for rate in settings.mask_rates), settings.mask_rate_schedule
    return shown.split(" to ")[0] if schedule is None else f"{shown} ({schedule.shape} over {schedule.steps:,} steps)"


def updates_of(config: RunConfig) -> tuple[Update, ...]:
    """The updates of one optimizer step of a run, in order."""
    updates, part = objective_of(config.objective).updates(config.objective), config.training.part
    if part == "both":
        return updates
    weights = objective_of(config.objective).loss_weights(config.objective)
    if part == GENERATOR:
        return (Update(GENERATOR, {"mlm_loss": weights["mlm_loss"]}),)
    return (Update(None, {"rtd_loss": weights["rtd_loss"]}, frozen=GENERATOR),)


def list_layers(model: ModelConfig, settings: ObjectiveConfig) -> list[Layer]:
    """Every layer that a recipe trains, in order.

    Raises:
        ConfigError: the objective is unknown.
    """
    return objective_of(settings).layers(model, settings)
