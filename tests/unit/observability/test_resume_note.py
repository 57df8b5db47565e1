"""What a resumed run says before it goes on."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from megadeberta.observability.resume_note import lost_checkpoints, resume_lines

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def test_checkpoint_age_and_last_losses_are_said() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 21)]
    records.insert(10, {"step": 10, "valid_loss": 7.5})
    lines = resume_lines(
        Path("runs/x/checkpoints/step-20"),
        step=20,
        total_steps=60,
        created="2026-03-02T09:58:00+00:00",
        records=records,
        now=NOW,
    )
    assert lines == [
        "resuming from runs/x/checkpoints/step-20, saved 2h02m ago, after step 20 of 60",
        "last losses: training 15.500 (mean of 10 steps), validation 7.500 after step 10",
    ]


@pytest.mark.parametrize(
    ("created", "said"), [("2026-03-03T00:00:00+00:00", "saved at 2026-03-03"), ("yesterday", "at an unknown time")]
)
def test_a_clock_that_is_wrong_is_no_negative_age(created: str, said: str) -> None:
    (line,) = resume_lines(Path("step-1"), step=1, total_steps=2, created=created, records=[], now=NOW)
    assert said in line


def test_a_log_without_the_checkpoint_that_it_speaks_of_is_no_new_run() -> None:
    records = [{"step": step, "loss": 1.0} for step in range(1, 10)]
    assert lost_checkpoints([], interval=3, output=Path("run")) == ""
    assert lost_checkpoints(records[:3], interval=3, output=Path("run")) == ""  # killed in its first save
    assert lost_checkpoints(records, interval=100, output=Path("run")) == ""
    assert lost_checkpoints(records, interval=3, output=Path("run")).startswith(
        "run: the log has 9 steps, so there was"
    )


def test_a_checkpoint_that_the_log_has_seen_is_missed_whatever_the_interval() -> None:
    """As that of a signal, or of the end of a short run."""
    records = [{"step": 9, "loss": 1.0}, {"step": 9, "seconds_save": 0.1, "saved": True}]
    assert lost_checkpoints(records, interval=1000, output=Path("run")).startswith("run: the log has 9 steps")
    refused = [records[0], {"step": 9, "seconds_save": 0.1, "saved": False}]
    assert lost_checkpoints(refused, interval=1000, output=Path("run")) == ""
