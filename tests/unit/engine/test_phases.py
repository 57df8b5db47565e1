"""Phases of a step are measured, on a GPU by events that nobody waits for, and a profile covers its window."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megadeberta.engine.phases import BACKWARD, DATA, FORWARD, PhaseClock
from megadeberta.engine.profile import StepProfile

CPU = torch.device("cpu")


class _Event:
    """A CUDA event that cannot be waited for. The device has done those up to ``reached``."""

    recorded: list["_Event"]
    reached: int

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.number = -1

    def record(self) -> None:
        self.number = len(self.recorded)
        self.recorded.append(self)

    def query(self) -> bool:
        return self.number < self.reached

    def elapsed_time(self, end: "_Event") -> float:
        assert self.query() and end.query(), "would raise: the device has not been there"
        return 1000.0 * (end.number - self.number)

    def synchronize(self) -> None:
        raise AssertionError("the host must not wait")


def test_phases_on_a_cpu_add_up_over_micro_batches() -> None:
    clock = PhaseClock(CPU)
    for _ in range(2):
        with clock.phase(FORWARD):
            time.sleep(0.01)
    with clock.phase(BACKWARD):
        pass
    found = clock.take().seconds()
    assert found[FORWARD] >= 0.02 > found[BACKWARD] >= 0
    assert clock.take().seconds() == {}


def test_the_wait_for_the_loader_belongs_to_the_step_behind_it() -> None:
    def slow() -> Any:
        for number in range(2):
            time.sleep(0.01 if number else 0)
            yield number

    clock, waits = PhaseClock(CPU), []
    for _ in clock.waited_for(slow()):
        waits.append(clock.take().seconds()[DATA])
    assert waits[0] < 0.01 <= waits[1]
    assert clock.take().seconds() == {}


def test_on_a_gpu_events_are_read_late_and_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _Event.recorded, _Event.reached = [], 0
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", _Event.synchronize)
    clock = PhaseClock(torch.device("cuda"))
    for name in (FORWARD, BACKWARD, FORWARD):
        with clock.phase(name):
            pass
    taken = clock.take()
    assert taken.seconds() == {}
    _Event.reached = 4
    assert taken.seconds() == {FORWARD: 1.0, BACKWARD: 1.0}
    _Event.reached = 6
    assert taken.seconds() == {FORWARD: 2.0, BACKWARD: 1.0}


def _run(profile: StepProfile, clock: PhaseClock, steps: range) -> None:
    for step in steps:
        profile.before_step(step)
        clock.names_phases = profile.is_running
        with clock.phase(FORWARD):
            torch.ones(4, 4) @ torch.ones(4, 4)
        profile.after_step(step)
    profile.close(steps[-1])


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (range(1, 6), "steps-2-4-rank-1.json.gz"),
        (range(3, 6), "steps-3-4-rank-1.json.gz"),  # resumed inside the window
        (range(1, 4), "steps-2-3-rank-1.json.gz"),  # stopped inside of it
    ],
)
def test_a_profile_holds_the_steps_of_its_window(steps: range, name: str, tmp_path: Path) -> None:
    _run(StepProfile((2, 4), output=tmp_path, rank=1, device=CPU), PhaseClock(CPU), steps)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == name
    first, last = map(int, name.split("-")[1:3])
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == FORWARD for event in events) == last - first + 1
    assert sum(event.get("name") == "aten::mm" for event in events) == last - first + 1


def test_without_a_window_and_beyond_it_nothing_is_profiled(tmp_path: Path) -> None:
    for window, steps in (((), range(1, 4)), ((2, 4), range(5, 8))):
        _run(StepProfile(window, output=tmp_path, rank=0, device=CPU), PhaseClock(CPU), steps)
    assert not (tmp_path / "profile").exists()


def test_a_profile_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").touch()
    _run(StepProfile((1, 1), output=tmp_path, rank=0, device=CPU), PhaseClock(CPU), range(1, 3))
    assert "steps-1-1-rank-0.json.gz was not written: " in caplog.text


@pytest.mark.parametrize("planted", ["profile", "profile/steps-1-1-rank-0.json.gz"])
def test_a_link_in_the_place_of_a_profile_is_a_warning_and_leads_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, planted: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("keep me")
    run = tmp_path / "run"
    (run / planted).parent.mkdir(parents=True)
    (run / planted).symlink_to(elsewhere if planted == "profile" else elsewhere / "precious")
    _run(StepProfile((1, 1), output=run, rank=0, device=CPU), PhaseClock(CPU), range(1, 3))
    assert "a link to something elsewhere" in caplog.text
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("precious", "keep me")]
