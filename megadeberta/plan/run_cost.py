"""What a whole run costs in a layout: days, GPU-hours, tokens per second, MFU, and what failures take."""

import math
from dataclasses import dataclass

from megadeberta.config.run import RunConfig
from megadeberta.layers.flops import run_flops_per_token
from megadeberta.layers.optimizer_rules import checkpoint_bytes
from megadeberta.plan.cluster import Cluster

_COMMIT_SECONDS = 1.0
"""Of a save besides its bytes: manifest, hashes, rename. An assumption."""
_HOUR, _DAY = 3600, 86400


@dataclass(frozen=True)
class Failures:
    """How often a GPU ends a run, and what that takes."""

    gpu_hours: float = 50_000.0
    """Mean time between failures, of one GPU with its part of the node and the network. Llama 3 had 419 unexpected
    interruptions in 54 days on 16 384 GPUs: one in 50 700 GPU-hours."""
    restart_seconds: float = 300.0
    """From a failure to the first step that counts again, besides the steps that are lost. An assumption."""
    save_rate: float = 0.4
    """GB/s that each rank writes of a checkpoint (416 MB/s were measured on a local disk)."""


@dataclass(frozen=True)
class RunCost:
    """Of a whole run."""

    tokens_per_second: float
    mfu: float | None
    """Useful operations over the peak of all GPUs; None where the peak is unknown."""
    days: float
    """Without failures and checkpoints."""
    goodput: float
    """Fraction of the time that goes into steps that count, with checkpoints and failures; 0 = never ends."""
    save_seconds: float
    interval: int
    """Steps between checkpoints, as the recipe has them."""
    best_interval: int
    """Steps between checkpoints that lose least time (Young 1974)."""
    gpus: int

    @property
    def days_with_failures(self) -> float:
        """Wall-clock days of the run; infinite if it never ends."""
        return self.days / self.goodput if self.goodput else math.inf

    @property
    def gpu_hours(self) -> float:
        """Of the whole run, failures included."""
        return self.days_with_failures * 24 * self.gpus

    def describe(self) -> str:
        """One line."""
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        return (
            f"a run: {_short(self.days_with_failures)} days, {_short(self.gpu_hours)} GPU-hours, "
            f"{_short(self.tokens_per_second)} tokens/s{mfu}; goodput {self.goodput:.1%} with a checkpoint every "
            f"{self.interval:,} steps (least is lost with every {self.best_interval:,})"
        )


def run_cost(config: RunConfig, parameters: int, seconds: float, cluster: Cluster, failures: Failures) -> RunCost:
    """Of a run whose steps take ``seconds`` on average, of a model of so many parameters."""
    steps, world = config.training.steps, cluster.world_size
    length = config.data.sequence_length
    tokens = config.batches.samples(steps) * length / (steps * seconds)
    peak = None if cluster.peak_tflops is None else cluster.peak_tflops * 1e12 * world
    useful = run_flops_per_token(config.model, config.objective, sequence_length=length)
    save = checkpoint_bytes(config, parameters) / (failures.save_rate * 1e9 * world) + _COMMIT_SECONDS
    between = failures.gpu_hours * _HOUR / world
    interval = config.checkpoint.interval * seconds
    lost = (interval / 2 + failures.restart_seconds) / between
    goodput = max(0.0, 1 - lost) / (1 + save / interval)
    return RunCost(
        tokens_per_second=tokens,
        mfu=None if peak is None else tokens * useful / peak,
        days=steps * seconds / _DAY,
        goodput=goodput,
        save_seconds=save,
        interval=config.checkpoint.interval,
        best_interval=max(1, round(math.sqrt(2 * save * between) / seconds)),
        gpus=world,
    )


def _short(value: float) -> str:
    """Three digits: ``1.63``, ``24.1k``, ``2.1M``."""
    if not math.isfinite(value):
        return "endless"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scale = size if unit != "k" else 1e3
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
