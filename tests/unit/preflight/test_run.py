"""What is found out about the output folder before any rank starts."""

from pathlib import Path

import pytest

from megadeberta.errors import StorageError
from megadeberta.layers.optimizer_rules import checkpoint_bytes
from megadeberta.preflight import run
from tests.e2e.tiny_run import write_recipe


def test_a_disk_too_small_for_a_checkpoint_is_refused_before_the_start(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, prepared)
    needed = checkpoint_bytes(run.prepare_run(recipe, [], world_size=2).config)
    monkeypatch.setattr(run, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(StorageError, match=r"run: a checkpoint of this run takes .* kB, and .* kB are free; make room"):
        run.prepare_run(recipe, [], world_size=2)
    (tmp_path / "run" / "checkpoints" / "step-32").mkdir(parents=True)  # the last one: nothing will be written
    run.prepare_run(recipe, [], world_size=2)


def test_a_checkpoint_has_weights_and_moments_once_in_fp32(tmp_path: Path, prepared: Path) -> None:
    config = run.prepare_run(write_recipe(tmp_path, prepared), [], world_size=2).config
    average = config.model_copy(update={"training": config.training.model_copy(update={"ema_decay": 0.9})})
    assert checkpoint_bytes(config, 1000) == 12_000
    assert checkpoint_bytes(average, 1000) == 16_000
