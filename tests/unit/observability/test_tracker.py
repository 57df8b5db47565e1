"""TensorBoard gets the scalars; when it fails, training does not notice."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megadeberta.observability.tracker import TrackedRun, Tracker, open_tracker, tensorboard_tracker


def _scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def test_numbers_are_written_and_other_values_left_out(tmp_path: Path) -> None:
    tracker = tensorboard_tracker(tmp_path, done=0)
    tracker.log(1, {"loss": 2.5, "name": "x", "bad": math.nan, "count": 3}, prefix="train")
    tracker.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 2.5)]
    assert _scalars(tmp_path, "train/count") == [(1, 3.0)]


def test_points_after_the_checkpoint_are_hidden_on_resume(tmp_path: Path) -> None:
    for done, steps in ((0, range(1, 6)), (3, range(4, 7))):
        # Of two files of one second and one process TensorBoard may read the second first. No run resumes so soon.
        began = int(time.time())
        while int(time.time()) == began:
            time.sleep(0.01)
        tracker = tensorboard_tracker(tmp_path, done=done)
        for step in steps:
            tracker.log(step, {"loss": 10.0 * (done == 0) + step}, prefix="train")
        tracker.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 11.0), (2, 12.0), (3, 13.0), (4, 4.0), (5, 5.0), (6, 6.0)]


def test_without_the_package_there_is_no_tracker_and_one_line_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("megadeberta.observability.tracker.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert tensorboard_tracker(tmp_path / "folder", done=0) is None
    (record,) = caplog.records
    assert "pip install 'megadeberta[tensorboard]'" in record.getMessage()
    assert not (tmp_path / "folder").exists()


def test_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        tracker = tensorboard_tracker(tmp_path / "file", done=0)
        tracker.log(1, {"loss": 1.0}, prefix="train")
        tracker.flush()
        tracker.close()
    assert caplog.text.count("TensorBoard stopped") == 1
    assert "training goes on without it" in caplog.text


def test_writer_that_fails_later_is_one_warning_and_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        calls = 0
        last: ClassVar[dict[str, int]] = {}

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self.calls += 1
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise AssertionError("asked again")

        close = flush

    writer = Failing()
    tracker = Tracker(lambda: writer)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log(step, {"loss": 1.0, "lr": 2.0}, prefix="train")
        tracker.flush()
        tracker.close()
    assert writer.calls == 1
    assert caplog.text.count("TensorBoard stopped (OSError: [Errno 28] No space left on device)") == 1


@pytest.mark.parametrize(
    ("name", "place"),
    [("TensorBoard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow.db")],
)
def test_a_tracker_does_not_write_through_a_link_in_the_place_of_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, place: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / place).symlink_to(elsewhere)
    run = TrackedRun("run", "project", tmp_path, 0, {})
    tracker = tensorboard_tracker(tmp_path / place, done=0) if name == "TensorBoard" else open_tracker(name, run)
    tracker.log(1, {"loss": 1.0}, prefix="train")
    tracker.close()
    assert list(elsewhere.iterdir()) == []
    assert f"{name} stopped (OSError: " in caplog.text
    assert "a link to something elsewhere" in caplog.text
