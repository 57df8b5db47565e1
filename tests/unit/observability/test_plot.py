"""The picture shows what the file holds; it is whole or absent."""

import logging
import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from megadeberta.observability.metrics import MetricsFile
from megadeberta.observability.plot import plot_loss_curve, smooth


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile.create(path) as file:
        for step in range(1, 201):
            file.write(step, {"loss": 6 - step / 100, "mlm_loss": 6 - step / 100})
            if step % 50 == 0:
                file.write(step, {"valid_loss": 6.1 - step / 100, "valid_mlm_loss": 6.1 - step / 100})
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, *args: object, **options: object) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def test_picture_shows_training_validation_and_the_baseline(metrics: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    picture = tmp_path / "loss_curve.png"
    assert plot_loss_curve(metrics, picture, title="quickstart", unigram=6.45, losses=["mlm_loss"])
    axes = drawn[0].axes[0]
    raw, _, validation, baseline = axes.get_lines()
    assert list(raw.get_xdata()) == list(range(1, 201))
    assert list(validation.get_xdata()) == [50, 100, 150, 200]
    assert set(baseline.get_ydata()) == {6.45}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training, moving average", "validation, last 4.100", "unigram cross-entropy 6.450"]
    assert (axes.get_xlabel(), axes.get_title()) == ("optimizer step", "quickstart")
    assert "nats" in axes.get_ylabel()
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[1] >= 800
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["loss_curve.png", "metrics.jsonl"]


def test_nothing_is_drawn_before_the_first_step(tmp_path: Path) -> None:
    assert not plot_loss_curve(tmp_path / "none.jsonl", tmp_path / "curve.png", title="x", losses=["mlm_loss"])
    assert not (tmp_path / "curve.png").exists()


def test_failed_picture_is_a_warning_and_leaves_the_old_one(
    metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"old")

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        assert not plot_loss_curve(metrics, picture, title="x", losses=["mlm_loss"])
    assert "curve.png: No space left on device" in caplog.text
    assert picture.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_smoothing_is_the_mean_of_the_last_fiftieth() -> None:
    assert smooth([3.0, 1.0]) == [3.0, 1.0]
    values = [float(value) for value in range(100)]
    assert smooth(values)[0] == 0.0
    assert smooth(values)[50] == pytest.approx(49.5)


def test_every_loss_has_a_panel_of_its_own(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile.create(path) as file:
        for step in range(1, 41):
            file.write(step, {"loss": 9.0, "mlm_loss": 6 - step / 100, "rtd_loss": 0.4 - step / 1000})
            if step % 20 == 0:
                file.write(
                    step, {"valid_mlm_loss": 6.1 - step / 100, "valid_rtd_loss": 0.5, "valid_replaced_rate": 0.2}
                )
    assert plot_loss_curve(path, tmp_path / "c.png", title="two", unigram=7.0, losses=["mlm_loss", "rtd_loss"])
    (figure,) = drawn
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["MLM loss (nats per masked token)", "RTD loss (nats per token)"]
    first, second = ([line.get_label() for line in axes.lines] for axes in figure.axes)
    assert "validation, last 5.700" in first and "unigram cross-entropy 7.000" in first
    assert "training" in first and "entropy of the replaced fraction 0.500" in second
    assert "validation, last 0.500" in second and not any("unigram" in label for label in second)


def test_each_validation_file_has_a_line_of_its_own(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile.create(path) as file:
        for step in (1, 2):
            file.write(step, {"mlm_loss": 6.0 - step})
            file.write(step, {"valid_mlm_loss": 5.0, "valid_mlm_loss/en": 4.0, "valid_mlm_loss/sw": 6.0 - step})
    assert plot_loss_curve(path, tmp_path / "c.png", title="blend", losses=["mlm_loss"])
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[0].get_lines()}
    assert (lines["en"], lines["sw"], lines["validation, last 5.000"]) == ([4.0, 4.0], [5.0, 4.0], [5.0, 5.0])
