"""What a resumed run says before it goes on: from where, how old that is, how it stood, and what is different now."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megadeberta.config.redact import redact
from megadeberta.observability.metrics import SAVED, Record
from megadeberta.observability.progress import format_duration

_MOST_SHOWN = 12
_LAST_STEPS = 10
"""Over which the training loss is averaged."""
_JUMP = 1.02
"""Ratio of learning rates from which on it is no rounding and no part of the schedule."""
_UNSAID = ("name", "description")


def resume_lines(
    checkpoint: Path, *, step: int, total_steps: int, created: str, records: Sequence[Record], now: datetime
) -> list[str]:
    """Checkpoint, age and last losses.

    Args:
        created: as the checkpoint's manifest says it.
        records: of metrics.jsonl, up to ``step``.
    """
    lines = [f"resuming from {checkpoint}, saved {_age(created, now)}, after step {step} of {total_steps}"]
    losses = [record["loss"] for record in records if record.get("loss") is not None][-_LAST_STEPS:]
    valid = next((record for record in reversed(records) if record.get("valid_loss") is not None), None)
    parts = [f"training {sum(losses) / len(losses):.3f} (mean of {len(losses)} steps)"] if losses else []
    parts += [f"validation {valid['valid_loss']:.3f} after step {valid['step']}"] if valid else []
    return [*lines, f"last losses: {', '.join(parts)}"] if parts else lines


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """One line of the settings that differ from those of the checkpoint; empty where none does."""
    before, after = (dict(flat_settings(redact(values))) for values in (saved, current))
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    keys = [key for key in keys if key not in _UNSAID and not key.startswith("supervision.")]
    shown = [f"{key} {_text(before.get(key))} -> {_text(after.get(key))}" for key in keys[:_MOST_SHOWN]]
    more = f" (and {len(keys) - _MOST_SHOWN} more)" if len(keys) > _MOST_SHOWN else ""
    return f"changed since then: {', '.join(shown)}{more}" if keys else ""


def learning_rate_jump(last: float, planned: float, now: float) -> str:
    """A warning where the next step's learning rate is not what the saved settings had for it; else empty.

    Args:
        last: of the last step done.
        planned: of the next step under the saved settings; ``last`` where they had no next step.
        now: of the next step.
    """
    low, high = sorted((planned, now))
    if high <= low * _JUMP:
        return ""
    times = f", {now / last:.3g} times as high" if last > 0 else ""
    return (
        f"the learning rate jumps from {last:.2e} to {now:.2e}{times}: training.steps, schedule or optimizer.lr are "
        "other ones than before"
    )


def lost_checkpoints(records: Sequence[Record], *, interval: int, output: Path, begun: int = 0) -> str:
    """Why a run without any checkpoint is not one that is just beginning; empty if it may be.

    Args:
        records: of metrics.jsonl.
        interval: steps within which there must be a checkpoint.
        output: the run's folder.
        begun: step of the checkpoint of another run that this one begins with.
    """
    last = max((record["step"] for record in records), default=0)
    # Of a run that was killed in a save, or right after it, the log does not say that there is a checkpoint.
    if last - begun <= interval and not any(record.get(SAVED) for record in records):
        return ""
    return (
        f"{output}: the log has {last} steps, so there was a checkpoint, and there is none now. Put it back; "
        "to start from the beginning, delete the folder or choose another training.output_dir"
    )


def _age(created: str, now: datetime) -> str:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return "at an unknown time"
    seconds = (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
    return f"{format_duration(seconds)} ago" if seconds >= 0 else f"at {created}"


def flat_settings(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe under their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _text(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
