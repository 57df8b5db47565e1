"""What the journal records of a start beside its steps."""

import json
import logging
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from megadeberta.observability import journal as journal_module
from megadeberta.observability.journal import Journal, open_journal
from megadeberta.observability.metrics import read_metrics
from tests.models import run_config


def _journal(folder: Path, *, is_writer: bool = True, interval: int = 1) -> Journal:
    return open_journal(
        run_config(
            training={"output_dir": str(folder), "steps": 10},
            logging={"peak_tflops": 1.0, "plot": False, "interval": interval},
        ),
        done=0,
        unigram=None,
        world_size=1,
        device=torch.device("cpu"),
        is_writer=is_writer,
    )


def test_a_resumed_run_says_that_it_has_other_kernels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for taken, resumed in (("triton", False), ("triton", True), ("reference", True), ("triton", False)):
        with _journal(tmp_path) as journal:
            journal.kernels(taken, resumed=resumed)
    assert [record.message for record in caplog.records] == [
        "attention was triton and is reference from here on: the same up to rounding"
    ]
    assert (tmp_path / "kernels.txt").read_text() == "triton\n"
    with _journal(tmp_path, is_writer=False) as journal:
        journal.kernels("reference", resumed=True)
    assert len(caplog.records) == 1


@dataclass(frozen=True)
class _Means:
    means: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Facts:
    loss: float
    terms: _Means
    sources: dict[str, "_Facts"] = field(default_factory=dict)


def test_a_validation_of_several_files_is_recorded_by_file_and_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sources = {"en": _Facts(2.0, _Means({"mlm_loss": 2.0})), "sw": _Facts(4.0, _Means({"mlm_loss": 4.0}))}
    with _journal(tmp_path) as journal:
        journal.validation(5, _Facts(3.5, _Means({"mlm_loss": 3.5}), sources))
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: record[f"valid_mlm_loss{name}"] for name in ("", "/en", "/sw")} == {"": 3.5, "/en": 2.0, "/sw": 4.0}
    assert (record["valid_loss"], record["valid_loss/sw"]) == (3.5, 4.0)
    assert "step 5 validation loss of each source: en 2.000 sw 4.000" in caplog.text


def test_a_step_and_a_validation_show_each_loss_beside_its_baseline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    means = {"mlm_loss": 5.0, "rtd_loss": 0.5, "rtd_recall": 0.0, "replaced_rate": 0.25}
    facts = _Facts(10.0, _Means(means, dict.fromkeys([*means, "rtd_precision"], 0)))
    with open_journal(
        run_config(training={"output_dir": str(tmp_path), "steps": 10}, logging={"plot": False, "tensorboard": False}),
        done=0,
        unigram=6.5,
        world_size=1,
        device=torch.device("cpu"),
        is_writer=True,
    ) as journal:
        journal.validation(5, facts)
    line = "step 5 validation loss 10.000 perplexity 148.4 mlm 5.000 (6.500) rtd 0.500 (0.562) rec 0.000 prec -"
    assert line in caplog.text
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (record["valid_rtd_precision"], record["unigram_cross_entropy"]) == (None, 6.5)


def test_terms_of_a_loss_without_targets_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    means = {"ar_loss": 6.0, "ar_accuracy": 0.1}
    facts = _Facts(6.0, _Means(means, {"mlm_loss": 0, "mlm_accuracy": 0, "ar_loss": 9, "ar_accuracy": 9}))
    with open_journal(
        run_config(training={"output_dir": str(tmp_path), "steps": 10}, logging={"plot": False, "tensorboard": False}),
        done=0,
        unigram=6.5,
        world_size=1,
        device=torch.device("cpu"),
        is_writer=True,
    ) as journal:
        journal.validation(5, facts)
    assert "mlm" not in caplog.text.splitlines()[-1]
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert not [name for name in record if "mlm" in name] and record["valid_ar_loss"] == 6.0


class _Step(_Facts):
    applied = True
    grad_norm = 1.0
    grad_norms: ClassVar[dict[str, float]] = {}
    phases: ClassVar[dict[str, float]] = {"data": 0.1, "forward": 0.3, "backward": 0.5}


def test_phases_memory_validations_and_saves_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    means = _Means({"mlm_loss": 2.0}, {"mlm_loss": 4})
    with _journal(tmp_path) as journal:
        for step in (1, 2):
            journal.step(step, _Step(2.0, means), lr=1e-3, seconds=1.0, memory=3 << 30)
        journal.validation(2, _Facts(2.0, means), seconds=4.0)
        journal.saved(2, seconds=6.0, committed=True)
    first, _, valid, saved = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["seconds_forward"], first["gpu_memory_gib"]) == (0.3, 3.0)
    assert valid["seconds_validation"] == 4.0
    assert saved == {"step": 2, "seconds_save": 6.0, "saved": True}
    assert "mem 3.0 GiB" in caplog.text
    shown = " ".join(caplog.text.split())  # lines are as wide as the terminal
    assert "step 2 time: 1 s per step data 0.1 s (10 %) forward 0.3 s (30 %) backward 0.5 s (50 %)" in shown
    assert "validation 4 s in all" in shown


def test_a_run_without_a_gpu_says_nothing_of_its_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with _journal(tmp_path) as journal:
        journal.step(1, _Step(2.0, _Means({"mlm_loss": 2.0}, {"mlm_loss": 4})), lr=1e-3, seconds=1.0)
    assert "gpu_memory_gib" not in read_metrics(tmp_path / "metrics.jsonl")[0]
    assert "mem " not in caplog.text


def _set_clock(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(monotonic=lambda: now[0]))


def test_steps_are_shown_every_few_seconds_in_the_beginning_whatever_the_interval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    caplog.set_level(logging.INFO)
    means, now, shown = _Means({"mlm_loss": 2.0}, {"mlm_loss": 4}), [0.0], []
    _set_clock(monkeypatch, now)
    with _journal(tmp_path, interval=10**6) as journal:
        for step in range(11, 171):  # a minute of a second each, and more than an hour
            now[0] += 1.0 if step <= 70 else 40.0
            caplog.clear()
            journal.step(step, _Step(2.0, means), lr=1e-3, seconds=1.0)
            shown += [now[0]] if any(record.message.startswith(f"step {step}/") for record in caplog.records) else []
    in_a_minute = [second for second in shown if second <= 60]
    assert max(later - earlier for earlier, later in pairwise([0.0, *in_a_minute])) <= 3
    assert 20 < len(shown) - len(in_a_minute) < 80


def test_the_first_step_of_a_start_is_shown_whatever_the_interval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    caplog.set_level(logging.INFO)
    means = _Means({"mlm_loss": 2.0}, {"mlm_loss": 4})
    _set_clock(monkeypatch, [0.0])
    with _journal(tmp_path, interval=4) as journal:
        for step in range(3, 11):  # a start that goes on after step 2
            journal.step(step, _Step(2.0, means), lr=1e-3, seconds=1.0)
    lines = [record.message.split() for record in caplog.records]
    assert [words[1] for words in lines if words[0] == "step"] == ["3/10", "4/10", "8/10", "10/10"]
