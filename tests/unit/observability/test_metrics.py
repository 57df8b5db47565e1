"""The metrics file is always the joined log: whole lines, nothing after the checkpoint, exact floats."""

import errno
import json
import logging
import math
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.errors import ConfigError, StorageError
from megadeberta.observability.metrics import MetricsFile, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def _write(path: Path, steps: range) -> None:
    with MetricsFile(path) as metrics:
        for step in steps:
            metrics.write(step, {"loss": 1 / step})


def test_floats_come_back_exactly(path: Path) -> None:
    generator = random.Random(0)
    losses = [generator.uniform(0, 12) for _ in range(200)] + [5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2]
    with MetricsFile.create(path) as metrics:
        for step, loss in enumerate(losses):
            metrics.write(step, {"loss": loss})
    assert [record["loss"].hex() for record in read_metrics(path)] == [loss.hex() for loss in losses]


def test_each_line_is_on_disk_when_write_returns(path: Path) -> None:
    with MetricsFile.create(path) as metrics:
        metrics.write(1, {"loss": 6.5})
        assert path.read_text() == '{"step": 1, "loss": 6.5}\n'


def test_resume_keeps_steps_up_to_the_checkpoint_and_drops_half_a_line(path: Path) -> None:
    _write(path, range(1, 6))
    with open(path, "ab") as handle:
        handle.write(b'{"step": 6, "lo')
    with MetricsFile.resume(path, 3) as metrics:
        metrics.write(4, {"loss": 0.25})
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", range(1, 24, 3))
def test_joined_log_equals_the_uninterrupted_one_wherever_the_kill_came(path: Path, tmp_path: Path, cut: int) -> None:
    whole = tmp_path / "whole.jsonl"
    _write(whole, range(1, 8))
    _write(path, range(1, 6))
    path.write_bytes(path.read_bytes()[:-cut])
    with MetricsFile.resume(path, 3) as metrics:
        for step in range(4, 8):
            metrics.write(step, {"loss": 1 / step})
    assert path.read_bytes() == whole.read_bytes()


def test_resume_of_a_sound_file_does_not_rewrite_it(path: Path) -> None:
    _write(path, range(1, 4))
    inode = path.stat().st_ino
    MetricsFile.resume(path, 3).close()
    assert path.stat().st_ino == inode


def test_start_from_scratch_drops_what_was_there(path: Path) -> None:
    _write(path, range(1, 4))
    MetricsFile.create(path).close()
    assert read_metrics(path) == []


def test_damaged_lines_are_left_out_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    damaged = b'\x00\xff\n[]\n{"loss": 2}\n{"step": "2"}\n'
    path.write_bytes(b'{"step": 1}\n' + damaged + b'{"step": 3}\n')
    with caplog.at_level(logging.WARNING):
        assert [record["step"] for record in read_metrics(path, refuse_damaged=True)] == [1, 3]
    assert "4 damaged line(s) left out" in caplog.text
    path.write_bytes(damaged)
    assert read_metrics(path) == []
    with pytest.raises(ConfigError, match=r"metrics.jsonl: none of its 4 lines is whole; the file is damaged"):
        read_metrics(path, refuse_damaged=True)


def test_value_that_is_not_finite_is_null_and_the_line_stays_json(path: Path) -> None:
    with MetricsFile.create(path) as metrics:
        metrics.write(1, {"loss": math.nan, "grad": math.inf, "lr": 0.1})
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "grad": None, "lr": 0.1}


def test_missing_file_has_no_records(path: Path) -> None:
    assert read_metrics(path) == []


def test_lines_that_the_disk_refuses_are_written_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_write = os.write

    def refuse(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with MetricsFile.create(path) as metrics:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:5]))
            metrics.write(6, {})
            patch.setattr(os, "write", refuse)
            metrics.write(7, {})
            metrics.write(8, {})
        assert caplog.text.count("metrics.jsonl: cannot be written: No space left") == 1
        metrics.write(9, {})
    assert [record["step"] for record in read_metrics(path)] == [6, 7, 8, 9]
    assert "written again, with 3 lines that had waited" in caplog.text


def test_lines_that_are_refused_to_the_end_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    metrics = MetricsFile.create(path)
    monkeypatch.setattr(os, "write", refuse)
    metrics.write(1, {})
    metrics.write(2, {})
    metrics.close()
    assert "the last 2 lines could not be written" in caplog.text


def test_failed_rewrite_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(path, range(1, 5))
    before = path.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl: No space left"):
        MetricsFile.resume(path, 2)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_real_size_limit_of_a_file_makes_lines_wait(path: Path) -> None:
    with MetricsFile.create(path) as metrics:
        metrics.write(1, {"text": "x" * 100})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (130, hard))
        try:
            metrics.write(2, {"text": "x" * 100})
            assert [record["step"] for record in read_metrics(path)] == [1]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_link_planted_in_its_place_is_replaced_and_its_target_untouched(
    path: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    precious = tmp_path / "precious"
    _write(precious, range(1, 4))
    before = precious.read_bytes()
    path.parent.mkdir()
    plant(path, precious)
    with MetricsFile.resume(path, 3) as metrics:
        metrics.write(4, {"loss": 0.25})
    assert precious.read_bytes() == before
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]
