"""W&B offline, trackio and MLflow in a file: killed and resumed, each step is there once; what fails is left alone."""

import json
import logging
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar, get_args

import pytest
import torch

from megadeberta.config.deepspeed_block import check_keys
from megadeberta.config.training import TrackerName
from megadeberta.errors import ConfigError
from megadeberta.observability import tracker as trackers_module
from megadeberta.observability.journal import open_journal
from megadeberta.observability.mlflow_writer import MlflowWriter
from megadeberta.observability.tracker import TrackedRun, Tracker, open_tracker
from megadeberta.observability.wandb_writer import _is_offline
from megadeberta.preflight.run import prepare_run
from tests.models import recipe, run_config, write_json
from tests.unit.observability.test_journal import _Facts, _Means

KILLED_AT, SAVED_AT, STEPS = 25, 20, 30
FIRST_START = """
import os, sys
from pathlib import Path
from megadeberta.observability.tracker import TrackedRun, open_tracker
folder = Path(sys.argv[2])
tracker = open_tracker(sys.argv[1], TrackedRun("tiny", "megadeberta", folder, 0, {"optimizer": {"lr": 1}}))
for step in range(1, int(sys.argv[3]) + 1):
    tracker.log(step, {"loss": float(step), "applied": True}, prefix="train")
    if step % 10 == 0:
        tracker.log(step, {"valid_loss": step / 2}, prefix="valid")
os._exit(9)
"""


@pytest.fixture(autouse=True)
def _without_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_SERVICE",
        "MLFLOW_TRACKING_URI",
        "TRACKIO_DIR",
        "TRACKIO_SERVER_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def _wandb_steps(folder: Path, name: str) -> list[int]:
    """From the LevelDB log that `wandb sync` reads: blocks of 32 KiB of records (checksum, length, kind, content)."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, place, part = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            _, size, kind = struct.unpack_from("<IHB", data, place)
            left = 32768 - place % 32768
            if left < 7 or not kind:
                place += left
                continue
            part += data[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record, part = Record.FromString(part), b""
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                steps += [int(row["_step"])] if name in row else []
    return steps


def _mlflow_steps(folder: Path, name: str) -> list[int]:
    connection = sqlite3.connect(folder / "mlflow.db")
    rows = connection.execute("select step from metrics where key = ? order by step", (name,)).fetchall()
    assert connection.execute("select count(*), min(status) from runs").fetchall() == [(1, "FINISHED")]
    return [step for (step,) in rows]


def _trackio_steps(folder: Path, name: str) -> list[int]:
    (database,) = (folder / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    return [step for _, step, metrics in rows if name in json.loads(metrics)]


READ = {"wandb": _wandb_steps, "trackio": _trackio_steps, "mlflow": _mlflow_steps}


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_a_killed_and_resumed_run_has_every_step_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "trackio":  # it reads its settings when it is imported, which another test may have done
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    words = [sys.executable, "-c", FIRST_START, name, str(tmp_path), str(KILLED_AT)]
    assert subprocess.run(words, timeout=120, check=False).returncode == 9
    records = [{"step": step, "loss": float(step), "mlm_loss": float(step)} for step in range(1, KILLED_AT + 1)]
    records += [{"step": step, "valid_loss": step / 2} for step in (10, 20)]
    lines = [json.dumps(record) for record in sorted(records, key=lambda record: record["step"])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = run_config(
        training={"output_dir": str(tmp_path), "steps": STEPS},
        logging={"plot": False, "tensorboard": False, "trackers": [name]},
    )
    with open_journal(
        config, done=SAVED_AT, unigram=6.5, world_size=1, device=torch.device("cpu"), is_writer=True
    ) as journal:
        for step in range(SAVED_AT + 1, STEPS + 1):
            journal.step(step, _StepFacts(float(step)), lr=1e-3, seconds=0.1)
            if step % 10 == 0:
                journal.saved(step, seconds=0.5, committed=True)
        journal.validation(STEPS, _Facts(3.0, _Means({"mlm_loss": 3.0}, {"mlm_loss": 1})))
    assert READ[name](tmp_path, "train/loss") == list(range(1, STEPS + 1))
    assert READ[name](tmp_path, "valid/valid_loss") == [10, 20, 30]


class _StandInRun:
    """A run of the stand-in for trackio."""

    _next_step = 18

    def __init__(self, name: str, rows: dict[str, list[int]]) -> None:
        self.name = name
        self._rows = rows

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._rows.setdefault(self.name, []).append(step)

    def delete(self) -> None:
        self._rows.pop(self.name)


def _stand_in(rows: dict[str, list[int]], asked: list[dict[str, object]]) -> ModuleType:
    """What of trackio the writer calls, over rows by the name of their run."""

    def init(**options: object) -> _StandInRun:
        print("* Trackio project initialized")
        asked.append(options)
        return _StandInRun(str(options["name"]), rows)

    def runs(project: str) -> list[_StandInRun]:
        if not rows:
            raise ValueError(f"Project '{project}' does not exist")
        return [_StandInRun(name, rows) for name in rows]

    module = ModuleType("trackio")
    module.init, module.Api = init, lambda: SimpleNamespace(runs=runs)
    module.finish = lambda: print("* Run finished")
    return module


@pytest.mark.parametrize(("remote", "resume", "expected"), [(False, "never", [1, 2, 20]), (True, "allow", [5, 20])])
def test_a_local_run_of_trackio_is_written_anew_and_a_remote_one_goes_on(
    remote: bool,
    resume: str,
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows: dict[str, list[int]] = {"another": [1]}
    asked: list[dict[str, object]] = []
    monkeypatch.setitem(sys.modules, "trackio", _stand_in(rows, asked))
    monkeypatch.setenv("TRACKIO_SERVER_URL" if remote else "TRACKIO_DIR", "http://here" if remote else str(tmp_path))
    for done, steps in ((0, [5]), (18, [1, 2, 20])):
        tracker = open_tracker("trackio", TrackedRun("tiny", "p", tmp_path, done, {"lr": 1}))
        for step in steps:
            tracker.log(step, {"loss": 1.0}, prefix="train")
        tracker.close()
    (name,) = rows.keys() - {"another"}
    assert rows == {"another": [1], name: expected}
    assert name.startswith("tiny-")
    assert [options["resume"] for options in asked] == ["never", resume]
    assert capsys.readouterr().out == ""


class _StepFacts(_Facts):
    applied = True
    phases: ClassVar[dict[str, float]] = {"forward": 0.25}
    grad_norm = 1.0
    grad_norms: ClassVar[dict[str, float]] = {}

    def __init__(self, loss: float) -> None:
        super().__init__(loss, _Means({"mlm_loss": loss}, {"mlm_loss": 1}))


def test_a_step_that_a_tracker_has_is_not_written_again() -> None:
    class Remembering:
        last: ClassVar[dict[str, int]] = {"train": 5, "valid": 4}
        rows: ClassVar[list[tuple[int, dict[str, float]]]] = []

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self.rows.append((step, dict(values)))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    tracker = Tracker(Remembering)
    for step in (4, 5, 6):
        for prefix in ("train", "valid"):
            tracker.log(step, {"loss": 1.0, "name": "x", "bad": float("nan")}, prefix=prefix)
    assert Remembering.rows == [(5, {"valid/loss": 1.0}), (6, {"train/loss": 1.0}), (6, {"valid/loss": 1.0})]


def _first_start(name: str, folder: Path, steps: int) -> TrackedRun:
    """The run of a process that was killed after ``steps`` steps, as its next start finds it."""
    words = [sys.executable, "-c", FIRST_START, name, str(folder), str(steps)]
    assert subprocess.run(words, timeout=120, check=False).returncode == 9
    return TrackedRun("tiny", "megadeberta", folder, 0, {"optimizer": {"lr": 1}})


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_a_run_that_was_killed_before_its_first_checkpoint_has_every_step_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for module in [module for module in sys.modules if name == "trackio" and module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    tracker = open_tracker(name, _first_start(name, tmp_path, 5))
    for step in range(1, 11):
        tracker.log(step, {"loss": float(step)}, prefix="train")
    tracker.close()
    assert READ[name](tmp_path, "train/loss") == list(range(1, 11))


@pytest.mark.parametrize("database_too", [True, False])
def test_a_run_that_mlflow_has_lost_is_written_into_another(database_too: bool, tmp_path: Path) -> None:
    run = replace(_first_start("mlflow", tmp_path, 5), done=4)
    if database_too:
        (tmp_path / "mlflow.db").unlink()
    else:
        MlflowWriter(run)._client.delete_run(run.identity("mlflow"))
    tracker = open_tracker("mlflow", run)
    for step in range(1, 7):
        tracker.log(step, {"loss": float(step)}, prefix="train")
    tracker.close()
    steps = sqlite3.connect(tmp_path / "mlflow.db").execute(
        "select step from metrics where key = 'train/loss' and run_uuid = ? order by step", (run.identity("mlflow"),)
    )
    assert [step for (step,) in steps] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_goes_back_writes_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Remembering:
        last: ClassVar[dict[str, int]] = {}
        rows: ClassVar[list[int]] = []

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self.rows += [step] if "train/loss" in values else []

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setitem(trackers_module._OPENERS, "mlflow", lambda run: Remembering())
    config = run_config(
        training={"output_dir": str(tmp_path)},
        logging={"plot": False, "tensorboard": False, "trackers": ["mlflow"], "interval": 1},
    )
    with open_journal(config, done=0, unigram=6.5, world_size=1, device=torch.device("cpu"), is_writer=True) as journal:
        for first, last in ((1, 4), (3, 6)):
            for step in range(first, last + 1):
                journal.step(step, _StepFacts(float(step)), lr=1e-3, seconds=0.1)
                journal.saved(step, seconds=0.5, committed=True)
            journal.go_back(2, [])
    assert Remembering.rows == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_a_tracker_that_cannot_be_opened_is_one_warning(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    monkeypatch.setitem(sys.modules, f"{name}.entities", None)
    with caplog.at_level(logging.WARNING):
        tracker = open_tracker(name, TrackedRun("tiny", "p", tmp_path, 0, {}))
        tracker.log(1, {"loss": 1.0}, prefix="train")
        tracker.flush()
        tracker.close()
    assert caplog.text.count(f"{name} stopped (") == 1
    assert "training goes on without it" in caplog.text


def test_the_reason_why_a_tracker_stopped_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("database or disk is full\n[SQL: INSERT]\n(Background at https://x)")

    with caplog.at_level(logging.WARNING):
        Tracker(fail, name="mlflow")
    assert caplog.messages == ["mlflow stopped (OSError: database or disk is full); training goes on without it"]


def test_a_run_keeps_its_identity_at_a_resume_and_another_recipe_gets_another(tmp_path: Path) -> None:
    first = TrackedRun("tiny", "p", tmp_path, 0, {})
    identity = first.identity("wandb")
    assert TrackedRun("tiny", "p", tmp_path, 5, {}).identity("wandb") == identity
    assert TrackedRun("tiny", "p", tmp_path, 5, {}).known_identity("mlflow") is None
    assert TrackedRun("tiny", "p", tmp_path, 0, {}).identity("wandb") == identity  # ended before its first checkpoint
    other = TrackedRun("tiny", "p", tmp_path, 0, {"optimizer": {"lr": 1}})
    assert other.known_identity("wandb") is None and other.identity("wandb") != identity
    other.remember("mlflow", "a")
    assert first.known_identity("mlflow") is None
    (tmp_path / "trackers.json").write_text("[")
    assert TrackedRun("tiny", "p", tmp_path, 5, {}).known_identity("wandb") is None


def test_every_tracker_of_a_recipe_has_a_writer() -> None:
    assert set(get_args(TrackerName)) == set(trackers_module._OPENERS)


def test_wandb_is_offline_unless_it_can_log_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _is_offline()
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password x\n")
    assert not _is_offline()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _is_offline()
    monkeypatch.setenv("WANDB_MODE", "online")
    assert not _is_offline()
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "no-netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert not _is_offline()


def test_a_tracker_that_is_not_installed_is_refused_before_the_start(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megadeberta.preflight.run.find_spec", lambda name: None)
    values = recipe(training={"output_dir": str(tmp_path / "run")}, logging={"trackers": ["wandb"]})
    values["data"] = {"folder": str(prepared), "sequence_length": 64}
    with pytest.raises(ConfigError, match=r"logging.trackers names wandb, .*pip install 'megadeberta\[wandb\]'"):
        prepare_run(write_json(tmp_path / "r.json", values), [], world_size=1)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("wandb", "logging.trackers"),
        ("tensorboard", "logging.tensorboard"),
        ("comet", "logging.trackers"),
        ("csv_monitor", "metrics.jsonl"),
    ],
)
def test_monitor_keys_of_deepspeed_point_to_ours(key: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"deepspeed\.{key} is not used here; its place is .*{place}"):
        check_keys({key: {"enabled": True}}, source="x")


@pytest.mark.parametrize("name", ["what?", "run#1", "run 50%"])
def test_mlflow_puts_no_database_beside_a_folder_with_signs_of_addresses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"cannot be written, for one of \?, # and %; set MLFLOW_TRACKING_URI"):
        MlflowWriter(TrackedRun("tiny", "p", tmp_path / name, 0, {}))
    assert [path.name for path in tmp_path.iterdir()] == [name]
