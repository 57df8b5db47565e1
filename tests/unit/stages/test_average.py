"""Averages of a run's checkpoints: their numbers, and that the folder is one of weights."""

from pathlib import Path

import pytest
import torch

from megadeberta.convert.export import export_checkpoint
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.stages.average import average_checkpoints, average_fractions
from megadeberta.weights.source import load_weights
from tests.unit.convert.small_models import small_config, small_model, weights_of, write_checkpoint

STEPS = (1, 2, 3)


@pytest.fixture
def run(tmp_path: Path, spm: Path) -> Path:
    config = small_config()
    for step in STEPS:
        write_checkpoint(tmp_path / "run", small_model(config, seed=step), config, spm, step=step)
    return tmp_path / "run"


def test_the_mean_of_the_last_two_is_exported(tmp_path: Path, run: Path) -> None:
    fractions = average_checkpoints(run, tmp_path / "mean", last=2)
    assert {folder.name: fraction for folder, fraction in fractions.items()} == {"step-2": 0.5, "step-3": 0.5}
    two, three = (weights_of(small_model(small_config(), seed=seed)) for seed in (2, 3))
    found = load_weights(tmp_path / "mean").weights
    for name, tensor in found.items():
        assert torch.equal(tensor, ((two[name].double() + three[name].double()) / 2).float())
    export_checkpoint(tmp_path / "mean", tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_an_exponential_average_forgets_by_its_decay(tmp_path: Path, run: Path) -> None:
    fractions = average_checkpoints(run, tmp_path / "ema", ema=0.5)
    assert list(fractions.values()) == pytest.approx([0.25, 0.25, 0.5])
    models = [weights_of(small_model(small_config(), seed=step)) for step in STEPS]
    name = next(iter(models[0]))
    expected = sum(f * model[name].double() for f, model in zip(fractions.values(), models, strict=True))
    torch.testing.assert_close(load_weights(tmp_path / "ema").weights[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_fractions_add_up_to_one() -> None:
    assert sum(average_fractions(7, 0.9)) == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"--ema 1: is the decay per checkpoint"):
        average_fractions(3, 1.0)


def test_too_few_checkpoints_are_counted(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 3 checkpoints, an average needs 5; checkpoint\.keep_last"):
        average_checkpoints(run, tmp_path / "mean", last=5)


def test_a_damaged_checkpoint_is_not_averaged(tmp_path: Path, run: Path) -> None:
    file = run / "checkpoints" / "step-2" / "rank-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-2/rank-0\.safetensors: sha256"):
        average_checkpoints(run, tmp_path / "mean")
