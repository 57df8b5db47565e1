"""Averages of a run's checkpoints: their numbers, and that the folder is one of weights."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.convert.export import export_checkpoint
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.stages.average import average_checkpoints, average_fractions, take_average
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
    file = run / "checkpoints" / "step-2" / "node-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-2/node-0\.safetensors: sha256"):
        average_checkpoints(run, tmp_path / "mean")


def test_the_average_that_a_run_kept_is_taken_from_its_newest_checkpoint(tmp_path: Path, spm: Path, run: Path) -> None:
    config, average = small_config(), small_model(small_config(), seed=9)
    write_checkpoint(tmp_path / "kept", small_model(config, seed=4), config, spm, step=4, average=average)
    assert take_average(tmp_path / "kept", tmp_path / "out").name == "step-4"
    found, expected = load_weights(tmp_path / "out").weights, weights_of(average)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match=r"holds no average of the weights; .*training\.ema_decay"):
        take_average(run, tmp_path / "none")


def test_an_average_of_training_is_of_one_checkpoint(tmp_path: Path, run: Path) -> None:
    done = CliRunner().invoke(app, ["checkpoint", "average", str(run), str(tmp_path / "x"), "--trained", "--last", "2"])
    assert isinstance(done.exception, ConfigError) and "leave out --last and --ema" in str(done.exception)
