"""What a resumed run says before it goes on: from where, how old that is, how it stood, and what is different now."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from megadeberta.observability.metrics import SAVED, Record
from megadeberta.observability.progress import format_duration

_LAST_STEPS = 10
"""Over which the training loss is averaged."""


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
