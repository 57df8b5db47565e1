"""What a resume does to the learning rate: nothing, a small change that is told, or a jump that is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megadeberta.config.changes import changed_settings
from megadeberta.config.run import RunConfig
from megadeberta.config.schedule import learning_rate_factor
from megadeberta.config.training import OptimizerConfig, ScheduleConfig
from megadeberta.errors import ConfigError

JUMP = 1.1
"""Ratio of a learning rate to the last one, and to the one that the saved recipe had for this step, above which it
jumps: up, it may undo what the run has learned; down, the rest of the run learns next to nothing."""
_CHANGE = 1.02
"""Ratio up to which it is rounding, and part of no message."""
_DECIDING = ("optimizer.lr", "optimizer.discriminator_lr", "optimizer.muon_lr", "schedule.", "training.steps")


@dataclass(frozen=True)
class ResumedRate:
    """One of a run's learning rates where the run goes on."""

    setting: str
    """Which one, by the setting of its peak."""
    last: float
    """Of the last step done."""
    planned: float
    """Of the next step under the saved settings; ``last`` where they had no next step."""
    now: float
    """Of the next step."""

    @property
    def jumps(self) -> bool:
        """Whether it differs by more than ``JUMP`` from the last one, and that was not planned."""
        return _ratio(self.last, self.now) > JUMP and _ratio(self.planned, self.now) > JUMP

    @property
    def change(self) -> str:
        """What happens to it; empty where next to nothing does."""
        if _ratio(self.planned, self.now) <= _CHANGE:
            return ""
        times = f", {self.now / self.last:.3g} times as high" if self.last > 0 else ""
        return f"from {self.last:.2e} to {self.now:.2e}{times}"


def rates_at_resume(config: RunConfig, saved: Mapping[str, Any], step: int) -> list[ResumedRate]:
    """The learning rates of a run that goes on after ``step`` steps; none where no step is left, or where the saved
    settings say none.

    Args:
        saved: the configuration that the checkpoint's manifest holds.
    """
    try:
        before = OptimizerConfig.model_validate(saved["optimizer"])
        schedule, steps = ScheduleConfig.model_validate(saved["schedule"]), int(saved["training"]["steps"])
    except (KeyError, TypeError, ValueError):  # of a version with other settings
        return []
    if step >= config.training.steps:
        return []
    last = learning_rate_factor(schedule, step=max(0, step - 1), total_steps=steps)
    planned = learning_rate_factor(schedule, step=step, total_steps=steps) if step < steps else last
    now = learning_rate_factor(config.schedule, step=step, total_steps=config.training.steps)
    return [
        ResumedRate(setting, old * last, old * planned, new * now)
        for setting, old, new in _peaks(before, config.optimizer)
    ]


def refuse_jump(config: RunConfig, saved: Mapping[str, Any], step: int, *, checkpoint: str) -> None:
    """Stop before a step whose learning rate jumps, unless ``checkpoint.learning_rate_jump`` allows that.

    Args:
        saved: the configuration that the checkpoint's manifest holds.
        checkpoint: its folder, for the message.

    Raises:
        ConfigError: which rate jumps, by how much, and which settings make it.
    """
    if config.checkpoint.learning_rate_jump == "allow":
        return
    for rate in rates_at_resume(config, saved, step):
        if rate.jumps:
            changed = changed_settings(saved, config.model_dump(mode="json"), among=_DECIDING)
            raise ConfigError(
                f"{checkpoint}: going on after step {step}, the learning rate ({rate.setting}) would jump "
                f"{rate.change}{f', by {changed}' if changed else ''}; change the recipe back, or accept it with "
                "--set checkpoint.learning_rate_jump=allow"
            )


def changed_rates(config: RunConfig, saved: Mapping[str, Any], step: int) -> list[str]:
    """What a run that goes on says about its rates where they are not those that the saved recipe had."""
    return [
        f"the learning rate ({rate.setting}) goes {rate.change}: training.steps, schedule or optimizer are other ones "
        "than before"
        for rate in rates_at_resume(config, saved, step)
        if rate.change
    ]


def differs(old: float, new: float) -> bool:
    """Whether two learning rates differ by more than rounding."""
    return _ratio(old, new) > _CHANGE


def _peaks(before: OptimizerConfig, now: OptimizerConfig) -> list[tuple[str, float, float]]:
    """Setting, peak before and peak now; of a rate of its own where either recipe gives one."""
    own = [
        ("optimizer.discriminator_lr", before.discriminator_lr, now.discriminator_lr),
        ("optimizer.muon_lr", before.muon_lr, now.muon_lr),
    ]
    given = [(name, old or before.lr, new or now.lr) for name, old, new in own if old or new]
    return [("optimizer.lr", before.lr, now.lr), *given]


def _ratio(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return 1.0 if high == low else high / low if low > 0 else float("inf")
