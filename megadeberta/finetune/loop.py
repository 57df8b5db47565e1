"""One fine-tuning run: transformers' Trainer with SiFT in its loss, the best epoch kept, one line per epoch."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from megadeberta.errors import ConfigError, DivergenceError
from megadeberta.finetune.kinds.kind import Feature, Kind
from megadeberta.finetune.kinds.texts import Regression
from megadeberta.finetune.progress import Progress
from megadeberta.finetune.settings import OPTIMIZER, Point, Settings
from megadeberta.finetune.sift import Sift, squared_difference, symmetric_divergence

Metrics = dict[str, float]


@dataclass
class Epoch:
    """What one epoch ended with."""

    number: float
    loss: float
    """Mean of the steps, SiFT's part included."""
    metrics: Metrics
    seconds: float
    """Since the start of the run, evaluation included."""


@dataclass
class BestEpoch(TrainerCallback):
    """Keeps the weights of the epoch with the highest main metric; the earliest of equals."""

    main: str
    progress: Progress
    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1
    """Place in ``epochs``."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    _loss: float = float("nan")
    _started: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()
        self.progress.start(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._loss = kwargs["logs"].get("loss", self._loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics, model = kwargs["metrics"], kwargs["model"]
        found = {name.removeprefix("eval_"): float(value) for name, value in metrics.items()}
        scores = {name: found[name] for name in self._names(found)}
        epoch = Epoch(round(state.epoch, 3), self._loss, scores, time.monotonic() - self._started)
        if not torch.isfinite(torch.tensor(epoch.loss)):
            raise DivergenceError(f"the loss of epoch {state.epoch:.0f} is {epoch.loss}; lower --lr or raise --warmup")
        self.epochs.append(epoch)
        is_best = self.best < 0 or scores[self.main] > self.epochs[self.best].metrics[self.main]
        if is_best:
            self.best = len(self.epochs) - 1
            state_of = getattr(model, "module", model).state_dict()
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in state_of.items()}
        self.progress.epoch(epoch.number, epoch.loss, scores, epoch.seconds, best=is_best)

    @staticmethod
    def _names(found: Mapping[str, float]) -> list[str]:
        own = {"loss", "runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time"}
        return [name for name in found if name not in own]


class Trainer(transformers.Trainer):
    """transformers' loop with the loss of the model's own head, and SiFT's."""

    def __init__(self, *, kind: Kind, sift: Sift | None, **options: Any) -> None:
        super().__init__(**options)
        self.kind, self.sift = kind, sift
        # Our losses are means over a batch.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs["loss"]
        if self.sift is not None and model.training:
            clean = self.kind.logits(outputs, inputs)
            unwrapped = self.accelerator.unwrap_model(model)
            own = self.sift.loss(partial(self._predict, unwrapped, inputs), clean, self.kind.real(inputs))
            loss = loss + self.sift.settings.weight * own
        return (loss, outputs) if return_outputs else loss

    def _predict(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        features = {name: value for name, value in inputs.items() if name not in self.kind.label_names}
        return self.kind.logits(model(**features), inputs)


def build_trainer(
    model: Any,
    kind: Kind,
    collate: Callable[[Sequence[Feature]], dict[str, Tensor]],
    data: tuple[Sequence[Feature], Sequence[Feature]],
    score: Callable[[Any], Metrics],
    callback: BestEpoch,
    *,
    point: Point,
    settings: Settings,
    seed: int,
    scratch: Path,
) -> Trainer:
    """The trainer of one run.

    Args:
        data: training and development sequences.
        score: metrics of the outputs on the latter.
    """
    sift = None
    if settings.sift is not None and settings.sift.weight:
        distance = squared_difference if isinstance(kind, Regression) else symmetric_divergence
        sift = Sift(model, settings.sift, distance=distance)
    trainer = Trainer(
        kind=kind,
        sift=sift,
        model=model,
        args=_arguments(point, settings, kind, seed=seed, scratch=scratch),
        data_collator=collate,
        train_dataset=data[0],
        eval_dataset=data[1],
        compute_metrics=lambda found: score(found.predictions),
        callbacks=[callback],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _arguments(point: Point, settings: Settings, kind: Kind, *, seed: int, scratch: Path) -> TrainingArguments:
    ranks = world_size()
    micro_batch, accumulated = divide_batch(point.batch_size, settings.micro_batch, ranks)
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=max(8, micro_batch),
        gradient_accumulation_steps=accumulated,
        learning_rate=point.lr,
        warmup_steps=point.warmup,
        lr_scheduler_type="linear",
        bf16=settings.precision == "bf16",
        deepspeed=_deepspeed(settings) if settings.zero else None,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=list(kind.label_names),
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **OPTIMIZER,
    )


def divide_batch(batch_size: int, micro_batch: int | None, ranks: int) -> tuple[int, int]:
    """Sequences of one rank at a time, and how many of these are added up before a step.

    Raises:
        ConfigError: the batch is no whole multiple.
    """
    of_rank, rest = divmod(batch_size, ranks)
    micro = min(micro_batch or of_rank, of_rank)
    if rest or micro < 1 or of_rank % micro:
        raise ConfigError(
            f"--batch-size {batch_size} is no multiple of {ranks} ranks x {micro_batch or of_rank or 1} sequences; "
            "choose another batch size or --micro-batch"
        )
    return micro, of_rank // micro


def world_size() -> int:
    """Ranks of this job, as torchrun and its like tell."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _deepspeed(settings: Settings) -> dict[str, Any]:
    """The configuration of DeepSpeed, which Trainer starts; "auto" is filled in by transformers."""
    from megadeberta.engine.process_group import leave_out_shared_memory

    leave_out_shared_memory()
    return {
        "zero_optimization": {"stage": settings.zero},
        "bf16": {"enabled": settings.precision == "bf16"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
