"""Learning rate as a pure function of the optimizer step: nothing to save, nothing to restore."""

import math
from collections.abc import Callable

from megadeberta.config.training import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, *, step: int, total_steps: int) -> float:
    """The multiple of the peak learning rate for the update that makes step ``step + 1`` (``step`` counts from 0).

    ``linear`` is microsoft/DeBERTa's ``warmup_linear``: ``x / w`` before the end of warm-up, then ``1 - x`` with
    ``x = step / total``; it drops from 1 to ``1 - w`` where they meet. ``linear_shift`` is its continuous form.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return step / warmup
    return _SHAPES[schedule.name](schedule, step, total_steps)


def _progress(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Fraction of the steps after the warm-up that are done."""
    return (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)


def _constant(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    return 1.0


def _linear(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    return _between(1.0 - step / total_steps, schedule.end_ratio)


def _linear_shift(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    return _between(1.0 - _progress(schedule, step, total_steps), schedule.end_ratio)


def _cosine(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    progress = _progress(schedule, step, total_steps)
    return _between(0.5 * (1.0 + math.cos(math.pi * progress)), schedule.end_ratio)


def _warmup_stable_decay(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """1 until the last ``decay_steps`` of the run, then down to the end value.

    ``1-sqrt`` is ``1 - sqrt(x)`` with ``x`` the fraction of the decay that is done (Hägele et al. 2024, "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations").
    """
    decay_steps = max(1.0, schedule.decay_fraction * total_steps)
    if schedule.decay_steps is not None:
        decay_steps = float(schedule.decay_steps)
    left = min(1.0, (total_steps - step) / decay_steps)
    return _between(left if schedule.decay_shape == "linear" else 1.0 - math.sqrt(1.0 - left), schedule.end_ratio)


def _between(fraction: float, end: float) -> float:
    return end + (1.0 - end) * max(0.0, fraction)


_SHAPES: dict[str, Callable[[ScheduleConfig, int, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "linear_shift": _linear_shift,
    "cosine": _cosine,
    "wsd": _warmup_stable_decay,
}
"""By ``schedule.name``: schedule, step and number of steps -> factor, after the warm-up."""
