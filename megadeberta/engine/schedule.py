"""Learning rate as a pure function of the optimizer step: nothing to save, nothing to restore."""

import math

from megadeberta.config.training import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, *, step: int, total_steps: int) -> float:
    """The multiple of the peak learning rate for the update that makes step ``step + 1`` (``step`` counts from 0).

    ``linear`` is microsoft/DeBERTa's ``warmup_linear``: ``x / w`` before the end of warm-up, then ``1 - x`` with
    ``x = step / total``; it drops from 1 to ``1 - w`` where they meet. ``linear_shift`` is its continuous form.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "linear":
        return _between(1.0 - step / total_steps, schedule.end_ratio)
    if schedule.name == "linear_shift":
        return _between(1.0 - progress, schedule.end_ratio)
    if schedule.name == "cosine":
        return _between(0.5 * (1.0 + math.cos(math.pi * progress)), schedule.end_ratio)
    return _between(_stable_then_decay(step, total_steps, schedule.decay_fraction), schedule.end_ratio)


def _stable_then_decay(step: int, total_steps: int, decay_fraction: float) -> float:
    """Warm-up, stable, decay: 1 until the last ``decay_fraction`` of the run, then linear to 0."""
    decay_steps = max(1.0, decay_fraction * total_steps)
    return min(1.0, (total_steps - step) / decay_steps)


def _between(share: float, end: float) -> float:
    return end + (1.0 - end) * max(0.0, share)
