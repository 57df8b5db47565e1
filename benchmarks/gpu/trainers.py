"""A training step through the DeepSpeed engine: of our trainer, and of transformers' model in an engine built alike."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from peers import BERT, EAGER, PACKAGES
from step_models import PACKAGE_USES, Batch, bert_of, build_theirs, draw_batch, register_sdpa
from torch.nn import functional

from gpu.plan import fastest_backend
from gpu.scale import Scale
from megadeberta.assembly import assemble
from megadeberta.config.load import parse_run_config, read_recipe
from megadeberta.config.run import RunConfig
from megadeberta.config.schedule import learning_rate_factor
from megadeberta.engine.build import build_engine
from megadeberta.engine.launched import LaunchedStep
from megadeberta.engine.process_group import start_process_group
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.ops.attention.backends import AUTO, BACKENDS
from megadeberta.preflight.validate import validate_run
from megadeberta.rank.environment import apply

MLM, RTD = "deberta-v3-base-mlm", "deberta-v3-base"
MODELS: dict[str, tuple[str, str]] = {
    "base": (MLM, MLM),
    "base, mask decoder": (MLM, MLM),
    "large": (MLM, "deberta-v3-large"),
    "1.5b": (MLM, "deberta-v2-xxlarge"),
    "RTD": (RTD, RTD),
}
"""The recipe of a run, and the one that its model section is of."""
TIMEOUT_SECONDS = 180.0
"""Of collectives; the trial of the attention gets half of it, which keeps the day within its time."""
THEIR_LR = 1e-6
"""As small as ours is at the start of the warm-up."""


class Trainer(ABC):
    """An engine, its model and a batch."""

    engine: DeepSpeedEngine
    attention: str
    """What the attention is computed by, in words."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.tokens = config.engine.micro_batch * config.data.sequence_length

    @abstractmethod
    def step(self) -> None:
        """Forward, backward and update."""

    @abstractmethod
    def loss(self) -> float:
        """Of the last step."""

    def close(self) -> None:
        """Let go of the memory: the engine's hooks hold it through autograd, where no garbage collector sees it."""
        self.engine.destroy()


class OurTrainer(Trainer):
    """What ``train.py`` trains, on one rank, with a batch that is drawn once."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        _, topology = validate_run(config, world_size=1, source=config.name)
        assembly = assemble(config, topology, join())
        self.stepper, self.attention = assembly.stepper, assembly.attention.line
        self.engine = self.stepper.engine
        self._batches = [as_fields(config, draw(config))]
        self._done = 0
        self._under_way: LaunchedStep | None = None

    def step(self) -> None:
        targets, _ = self.stepper.share_counts(self._batches)
        factor = learning_rate_factor(self.config.schedule, step=self._done, total_steps=self.config.training.steps)
        lr = self.config.optimizer.lr * factor  # of the warm-up: what is timed must not diverge
        if self._under_way is not None:  # where the training loop reads it too
            self._under_way.result()
        self._under_way = self.stepper.launch_step(self._batches, step=self._done, targets=targets, lr=lr)
        self._done += 1

    def loss(self) -> float:
        assert self._under_way is not None, "there is no step yet"
        return self._under_way.result().loss


class TheirTrainer(Trainer):
    """transformers' model, as it is or with the attention of a package, in the engine of our recipes."""

    def __init__(self, config: RunConfig, variant: str) -> None:
        super().__init__(config)
        device = join()
        model = build_theirs(config.model).to(device)
        if variant in PACKAGES:
            PACKAGE_USES[variant](model)
        optimizer = config.optimizer.model_copy(update={"lr": THEIR_LR})
        self.engine = build_engine(model.train(), optimizer, block=config.deepspeed, timeout_seconds=TIMEOUT_SECONDS)
        batch = draw(config, device=device)
        self._inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": batch.labels}
        self.attention = variant

    def step(self) -> None:
        loss = self.engine(**self._inputs).loss
        self.engine.backward(loss)
        self.engine.step()
        self._loss = loss.detach()

    def loss(self) -> float:
        return float(self._loss)


@contextmanager
def built_trainer(scale: Scale, model: str, variant: str) -> Iterator[Trainer]:
    """A trainer, and after the block the memory as it was.

    Args:
        model: of ``MODELS``.
        variant: ``training.attention``, or a peer.
    """
    theirs = variant == EAGER or variant in PACKAGES
    config = run_config(scale, model, variant=AUTO if theirs else variant)
    trainer = TheirTrainer(config, variant) if theirs else OurTrainer(config)
    try:
        yield trainer
    finally:
        trainer.close()


def run_config(scale: Scale, model: str, *, variant: str) -> RunConfig:
    """The recipe with one micro batch a step; the mask decoder, which no peer has, only where it is asked for."""
    recipe, sizes = MODELS[model]
    values = read_recipe(Path(recipe))
    values["model"] = {**read_recipe(Path(sizes))["model"], **scale.model}
    values["model"]["enhanced_mask_decoder"] = model == "base, mask decoder"
    batch, length = scale.step_batch.get(model, scale.step_batch["base"])
    values["data"]["sequence_length"] = length
    values["deepspeed"] |= {"train_batch_size": batch, "train_micro_batch_size_per_gpu": batch, **scale.deepspeed}
    values["training"]["attention"] = variant
    values["parallel"] = {**values.get("parallel", {}), "timeout_seconds": TIMEOUT_SECONDS}
    config = parse_run_config(values, source=recipe)
    if variant == BERT:
        fastest = BACKENDS[fastest_backend(scale.device)]
        update = {"attention": register_sdpa(), "residual_norm": fastest.residual_norm}
        training = config.training.model_copy(update=update)
        config = config.model_copy(update={"model": bert_of(config.model), "training": training})
    return config


@cache
def join() -> torch.device:
    """This process as the only rank of a job; its device."""
    os.environ.update(apply({}))
    return start_process_group(TIMEOUT_SECONDS)


def draw(config: RunConfig, *, device: torch.device | None = None) -> Batch:
    """Random ids, on the host unless a device is given."""
    return draw_batch(config.engine.micro_batch, config.data.sequence_length, config.model.vocab_size, device=device)


def as_fields(config: RunConfig, batch: Batch) -> dict[str, Any]:
    """The batch as our loader gives it: empty slots fill up the rows of targets."""
    empty = micro_batch_of(config).slots - batch.positions.size(1)
    fields: Mapping[str, torch.Tensor] = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "masked_positions": functional.pad(batch.positions, (0, empty)),
        "masked_labels": functional.pad(batch.targets, (0, empty)),
        "sample_numbers": batch.numbers,
    }
    return dict(fields)
