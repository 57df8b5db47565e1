"""The sections that drive the run: optimizer, schedule, training, checkpoint, logging, parallel."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from megadeberta.config.batches import BatchStage
from megadeberta.config.section import Section

OptimizerName = Literal["adamw", "muon", "lamb", "stable_adamw"]
_MEANS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Rule:
    """How a library's optimizer changes one parameter."""

    moments: tuple[str, ...]
    """Tensors as large as the parameter that it keeps: their names in its state and in checkpoints."""
    is_elementwise: bool = False
    """Whether each element is updated by itself, so that any part of a tensor may be alone on a rank."""


RULES: Mapping[OptimizerName, Rule] = {
    "adamw": Rule(_MEANS, is_elementwise=True),
    "muon": Rule(("momentum_buffer",)),
    "lamb": Rule(_MEANS),
    "stable_adamw": Rule(_MEANS),
}
"""By ``optimizer.name``. Muon is for the matrices of the encoder, and AdamW beside it for everything else."""


class OptimizerConfig(Section):
    """Biases and LayerNorm weights are not decayed. Clipping is DeepSpeed's."""

    name: OptimizerName = Field(
        "adamw",
        description="muon: of torch, for the matrices of attention and feed-forward, AdamW for the rest; lamb and "
        "stable_adamw: of pytorch_optimizer",
    )
    lr: float = Field(gt=0, description="peak learning rate")
    discriminator_lr: float | None = Field(None, gt=0, description="rtd: of the discriminator; null = lr")
    muon_lr: float | None = Field(
        None, gt=0, description="muon: of the matrices, whose update has the size of an AdamW update; null = lr"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of the gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of their squares")
    momentum: float = Field(0.95, ge=0, lt=1, description="muon: decay of the mean of the gradients of matrices")
    eps: float = Field(1e-6, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(0.01, ge=0, description="per step, times the learning rate")
    bias_correction: bool = Field(
        True, description="false: Adam as in Microsoft's code, which has no bias correction; adamw alone"
    )

    @model_validator(mode="after")
    def _settings_fit_the_name(self) -> Self:
        if not self.bias_correction and self.name != "adamw":
            raise ValueError(
                f"optimizer.bias_correction=false is AdamW's, and optimizer.name={self.name!r}: the library has "
                "no such form of it; leave it out, or use optimizer.name=adamw"
            )
        if self.muon_lr is not None and self.name != "muon":
            raise ValueError(
                f"optimizer.muon_lr={self.muon_lr:g} with optimizer.name={self.name!r}, which has no matrices of its "
                "own; leave it out, or use optimizer.name=muon"
            )
        return self


class ScheduleConfig(Section):
    """Learning rate as a multiple of optimizer.lr, as a function of the optimizer step alone."""

    name: Literal["linear", "linear_shift", "cosine", "wsd", "constant"] = Field(
        "linear_shift", description="linear: Microsoft's, drops from 1 to 1 - warmup at the end of warm-up"
    )
    warmup_steps: int = Field(10_000, ge=0, description="steps of linear increase at the start")
    end_ratio: float = Field(0.0, ge=0, le=1, description="value at the last step")
    decay_fraction: float = Field(0.1, gt=0, le=1, description="wsd: share of the run spent decaying at the end")
    decay_steps: int | None = Field(None, gt=0, description="wsd: steps of it; null = decay_fraction of the run")
    decay_shape: Literal["linear", "1-sqrt"] = Field(
        "linear", description="wsd: the way down; 1-sqrt drops fast at first and spends longer at low rates"
    )


class TrainingConfig(Section):
    """Length of the run, its seed and its output. Batch sizes and precision are in the deepspeed block."""

    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(1234, ge=0, lt=2**63, description="of weights, order, masks, samples and dropout")
    output_dir: Path = Field(description="of checkpoints, metrics and plots; relative to the working folder")
    init_from: Path | None = Field(
        None, description="weights to start from: what `megadeberta convert import` wrote, or takes (OWNER/MODEL too)"
    )
    continue_from: Path | None = Field(
        None,
        description="a step-N folder of another run, whose weights, optimizer state and place in the data this run "
        "begins with; see docs/stages.md",
    )
    batch_stages: tuple[BatchStage, ...] = Field(
        (),
        description='batches of the first steps, before that of deepspeed.train_batch_size: [{"steps": 1000, '
        '"sequences": 256}, ...]',
    )
    part: Literal["both", "generator", "discriminator"] = Field(
        "both", description="rtd: the part that is trained, while the other one stays as it is; see docs/recipes.md"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep an exponential average of the weights too, of which so much stays at each update, such as "
        "0.9999; null = none; see docs/stages.md",
    )
    eval_interval: int = Field(1000, gt=0, description="steps between validations; the last step validates too")
    attention: str = Field(
        "auto", description="a backend of docs/kernels.md, same results by all; auto = the fastest here"
    )
    residual_norm: Literal["auto", "torch", "cpu", "triton"] = Field(
        "auto", description="what ends a block (dropout, residual, LayerNorm); auto = what goes with the attention"
    )
    logits: Literal["auto", "torch", "cpu", "triton"] = Field(
        "auto", description="what computes the loss over the vocabulary and draws from it; auto = the fastest here"
    )
    apex: Literal["auto", "on", "off"] = Field(
        "auto", description="NVIDIA apex's LayerNorm where it is built; auto = where it is measured to be faster"
    )
    tf32: bool = Field(
        False,
        description="fp32 products on a GPU: true = inputs rounded to 10 bits, several times faster; false = fp32",
    )
    selective_recompute: bool = Field(
        False, description="keep less for backward: project queries, keys, values and the feed-forward again there"
    )
    compile: Literal["none", "layers"] = Field(
        "none", description="layers: torch.compile makes one program of an encoder layer, for training steps alone"
    )
    eval_sequences: int = Field(512, gt=0, description="validation sequences, from the start of each file")


class CheckpointConfig(Section):
    """When to save, how many to keep."""

    interval: int = Field(1000, gt=0, description="optimizer steps between checkpoints; the last step saves too")
    minutes: float | None = Field(
        None, gt=0, description="save too when so many minutes have passed since the last checkpoint; null = by steps"
    )
    keep_last: int = Field(2, ge=1, description="older checkpoints are removed; at least one intact one is always kept")
    keep_every: int | None = Field(
        None, gt=0, description="checkpoints whose step is a multiple of it stay, beside the last ones; null = none"
    )
    asynchronous: bool = Field(
        False, description="copy the state to host memory and write it while training goes on; the last one never is"
    )
    resume: Literal["auto", "required"] = Field(
        "auto", description="auto: from the newest intact checkpoint, or from scratch if there is none at all"
    )

    learning_rate_jump: Literal["refuse", "allow"] = Field(
        "refuse",
        description="a resume with a learning rate more than 1.1 times above or below both the last one and the one "
        "that the saved recipe had for that step",
    )

    @model_validator(mode="after")
    def _keeps_what_is_saved(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.interval:
            raise ValueError(
                f"checkpoint.keep_every={self.keep_every} is no multiple of checkpoint.interval={self.interval}, so "
                f"most of its steps are never saved; set it to one, such as {self.interval * 10}"
            )
        return self


TrackerName = Literal["wandb", "trackio", "mlflow"]


class LoggingConfig(Section):
    """What is written beside the checkpoints."""

    interval: int = Field(1, gt=0, description="optimizer steps between progress lines; every step is in metrics.jsonl")
    tensorboard: bool = Field(True, description="curves in OUTPUT/tensorboard too, where the package is installed")
    trackers: tuple[TrackerName, ...] = Field(
        (), description="others that get the same curves: Weights & Biases, trackio, MLflow; each is an extra"
    )
    project: str = Field(
        "megadeberta", min_length=1, description="of the trackers: a project of W&B and trackio, MLflow's experiment"
    )
    plot: bool = Field(True, description="loss_curve.png, redrawn at every validation by a process of its own")
    profile_steps: tuple[PositiveInt, ...] = Field(
        (), description="[first, last]: torch.profiler writes these steps of each rank to OUTPUT/profile"
    )
    peak_tflops: float | None = Field(None, gt=0, description="device peak for MFU; null = table of GPUs, none on CPUs")

    @field_validator("trackers", mode="before")
    @classmethod
    def _has_no_tensorboard(cls, value: object) -> object:
        if isinstance(value, list | tuple) and "tensorboard" in value:
            raise ValueError("logging.trackers=tensorboard: its place is logging.tensorboard, which is on by default")
        return value

    @field_validator("profile_steps")
    @classmethod
    def _is_a_window(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"profile_steps={list(value)} must be [first, last], or [] for none")
        return value


class ParallelConfig(Section):
    """How the ranks share the work. Data parallel is what is left: ranks / (tensor x pipeline); ZeRO divides by it."""

    tensor: int = Field(1, ge=1, description="ranks that share the heads, the feed-forward and the vocabulary")
    pipeline: int = Field(1, ge=1, description="stages that share the layers; ZeRO stage 1 only")
    sequence_parallel: bool = Field(
        False, description="tensor-parallel ranks also share the tokens between the sharded layers: less memory"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only the input of every layer and compute the rest again in the backward pass"
    )
    timeout_seconds: float = Field(1800, gt=0, description="every collective of every group fails after this long")
    threads_per_rank: int | None = Field(
        None, gt=0, description="CPU threads; null = OMP_NUM_THREADS, else cores / local ranks"
    )

    @field_validator("timeout_seconds")
    @classmethod
    def _not_below_a_second(cls, value: float) -> float:
        if value < 1:
            raise ValueError(f"timeout_seconds={value:g} is below 1 second; collectives need longer than that to start")
        return value


class SupervisionConfig(Section):
    """When `megadeberta launch` takes a rank that does not get on for a hung one: it ends all, and starts again."""

    start_seconds: float = Field(1800, gt=0, description="imports, meeting the others, building, reading a checkpoint")
    compile_seconds: float = Field(1800, gt=0, description="each of the first steps, in which kernels are compiled")
    step_seconds: float = Field(
        15, ge=5, description="a step, at least; 60 for a network that may take half a minute to recover"
    )
    silence_seconds: float = Field(
        15, ge=5, description="a rank whose process says nothing while it trains: stopped, or its interpreter is held"
    )
    step_factor: float = Field(10, ge=2, description="a step, as a multiple of the median of the last 20")
    data_seconds: float = Field(600, gt=0, description="a batch that does not come")
    save_seconds: float = Field(1800, gt=0, description="a checkpoint")
    evaluate_seconds: float = Field(1800, gt=0, description="a validation")


class NumericsConfig(Section):
    """What a run checks about its own numbers beside whether they are finite, which it always does."""

    skip_limit: int = Field(
        0,
        ge=0,
        description="steps in a row with a loss or gradient that is not finite that change nothing and are passed over "
        "with their samples; at the next one the run ends with 77",
    )
    replicas_every: int | None = Field(
        None,
        gt=0,
        description="steps between two comparisons of the weights that data-parallel ranks hold alike, and before each "
        "checkpoint; null = never",
    )
    spike_factor: float | None = Field(
        None,
        gt=1,
        description="a loss above this multiple of the median before it is a spike: back to the last checkpoint, and "
        "the samples since then are passed over; null = no loss is",
    )
    spike_window: int = Field(100, ge=2, description="steps of that median; the first ones of a run are not judged")
    spike_limit: int = Field(3, ge=1, description="spikes behind one checkpoint; at the next one the run ends with 77")
