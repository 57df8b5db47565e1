"""Where weights come from: the newest sound checkpoint of a run, one checkpoint, or an imported folder."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from megadeberta.checkpoint.folder import CheckpointName, write_pointer
from megadeberta.errors import CheckpointError
from megadeberta.weights.source import load_weights
from tests.unit.convert.small_models import (
    small_config,
    small_model,
    weights_of,
    write_checkpoint,
    write_weights_folder,
)

CONFIG = small_config()


@pytest.fixture
def run(tmp_path: Path, spm: Path) -> Path:
    """A run with checkpoints of steps 10, 20 and 30, of three different models."""
    for step in (10, 20, 30):
        write_checkpoint(tmp_path / "run", small_model(CONFIG, seed=step), CONFIG, spm, step=step)
    return tmp_path / "run"


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_gives_its_newest_checkpoint(run: Path) -> None:
    source = load_weights(run)
    assert source.folder.name == "step-30" and source.run["step"] == 30 and source.config == CONFIG
    expected = weights_of(small_model(CONFIG, seed=30))
    assert all(torch.equal(source.weights[name], expected[name]) for name in expected)
    assert source.tokenizer == source.folder / "spm.model"
    assert load_weights(run / "checkpoints" / "step-10").run["step"] == 10


def test_the_pointer_goes_before_the_newest_name(run: Path) -> None:
    write_pointer(run / "checkpoints", CheckpointName(20, 1))
    assert load_weights(run).run["step"] == 20


def test_a_damaged_checkpoint_is_passed_over_and_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    _flip_a_bit(run / "checkpoints" / "step-30" / "node-0.safetensors")
    assert load_weights(run).run["step"] == 20
    assert "step-30/node-0.safetensors: sha256" in caplog.text
    with pytest.raises(CheckpointError, match=r"node-0\.safetensors: sha256 .* the manifest says"):
        load_weights(run / "checkpoints" / "step-30")
    (run / "checkpoints" / "latest").write_text("../../elsewhere")
    assert load_weights(run).run["step"] == 20
    for step in (10, 20):
        _flip_a_bit(run / "checkpoints" / f"step-{step}" / "spm.model")
    with pytest.raises(CheckpointError, match=r"none of 3 checkpoints is intact, the newest: .*step-30"):
        load_weights(run)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder; give the output folder of a run"):
        load_weights(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; give the training.output_dir"):
        load_weights(tmp_path)


def test_a_checkpoint_whose_weights_are_not_its_models_is_refused(tmp_path: Path, spm: Path) -> None:
    other = small_config(hidden_size=32)
    step = write_checkpoint(tmp_path / "run", small_model(other), CONFIG, spm, step=1)
    with pytest.raises(CheckpointError, match=r"do not fit the model configuration.*expected \(.*24.*found \(.*32"):
        load_weights(step)


def test_a_manifest_of_another_version_of_the_model_section_is_refused(tmp_path: Path, spm: Path) -> None:
    broken = CONFIG.model_copy(update={"vocab_size": -1})
    step = write_checkpoint(tmp_path / "run", small_model(CONFIG), broken, spm, step=1)
    with pytest.raises(CheckpointError, match="no model section that this megadeberta reads"):
        load_weights(step)


def test_damaged_imported_folders_are_refused(tmp_path: Path, spm: Path) -> None:
    folder = write_weights_folder(tmp_path / "imported", small_model(CONFIG), CONFIG, spm)
    weights = folder / "model.safetensors"
    nan = weights_of(small_model(CONFIG))
    nan["layer.0.feed_forward.up.bias"][3] = float("nan")
    safetensors.torch.save_file(nan, weights)
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors hold NaN or infinity, first layer\.0\.feed_forward"):
        load_weights(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        load_weights(folder)
    (folder / "model.json").write_text(json.dumps({"vocab_size": "many"}))
    with pytest.raises(CheckpointError, match=r"model\.json: not a model configuration.*import the model again"):
        load_weights(folder)
    shutil.rmtree(folder)
