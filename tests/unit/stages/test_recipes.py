"""The recipes of stages: what is taken from the run, what a user may set, and what is refused."""

import json
from pathlib import Path

import pytest

from megadeberta.config.load import load_run_config
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.preflight.run import prepare_run
from megadeberta.stages.cooldown import write_cooldown
from megadeberta.stages.extend import write_extension
from tests.models import recipe, write_json
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint

STEP = 50


def _checkpoint(folder: Path, spm: Path, **sections: object) -> Path:
    config = small_config()
    given = {
        "data": {"train": "shards/train", "tokenizer": str(spm), "sequence_length": 8},
        "schedule": {"name": "constant", "warmup_steps": 10},
        "training": {"steps": 1000, "seed": 7, "output_dir": "runs/before"},
    }
    return write_checkpoint(folder / "run", small_model(config), config, spm, step=STEP, **given | sections)


def test_a_cooldown_is_the_runs_recipe_with_a_decay_to_the_end(tmp_path: Path, spm: Path) -> None:
    checkpoint, output = _checkpoint(tmp_path, spm), tmp_path / "cooled"
    stage = write_cooldown(checkpoint, output, steps=20, shape="linear", overrides=["optimizer.beta2=0.9"])
    config = load_run_config(stage.recipe)
    assert (stage.step, config.training.steps, config.training.output_dir) == (STEP, STEP + 20, output)
    assert config.training.continue_from == checkpoint
    assert (config.schedule.name, config.schedule.decay_steps, config.schedule.decay_shape) == ("wsd", 20, "linear")
    assert (config.training.seed, config.optimizer.beta2, config.schedule.warmup_steps) == (7, 0.9, 10)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "constant", "warmup_steps": 60}, r"warms up until step 60; give a checkpoint after it"),
        ({"name": "linear_shift", "warmup_steps": 0}, r"rate there is 0\.00095, and .* --set optimizer\.lr=0\.00095"),
    ],
)
def test_a_rate_that_would_jump_is_refused(tmp_path: Path, spm: Path, schedule: dict, message: str) -> None:
    checkpoint = _checkpoint(tmp_path, spm, schedule=schedule)
    with pytest.raises(ConfigError, match=message):
        write_cooldown(checkpoint, tmp_path / "cooled", steps=20)
    assert not (tmp_path / "cooled").exists()


def test_the_rate_of_a_decay_can_be_accepted(tmp_path: Path, spm: Path) -> None:
    checkpoint = _checkpoint(tmp_path, spm, schedule={"name": "linear_shift", "warmup_steps": 0})
    stage = write_cooldown(checkpoint, tmp_path / "cooled", steps=20, overrides=["optimizer.lr=0.00095"])
    assert stage.config.optimizer.lr == 0.00095


def test_plugins_and_secrets_of_a_checkpoint_are_the_users_to_give(tmp_path: Path, spm: Path) -> None:
    checkpoint = _checkpoint(tmp_path, spm, plugins=["tests.toy_objective"])
    with pytest.raises(ConfigError, match=r"the run had --plugin tests\.toy_objective: add that if you trust it"):
        write_cooldown(checkpoint, tmp_path / "cooled", steps=20)
    other = _checkpoint(tmp_path / "other", spm, logging={"project": "***"})
    with pytest.raises(ConfigError, match=r"logging\.project is a secret .* --set logging\.project"):
        write_cooldown(other, tmp_path / "cooled", steps=20)


def test_a_cooldown_that_ends_where_it_begins_is_refused(tmp_path: Path, spm: Path) -> None:
    checkpoint = _checkpoint(tmp_path, spm)
    with pytest.raises(ConfigError, match=r"training\.steps=50 ends before the checkpoint's step 50"):
        write_cooldown(checkpoint, tmp_path / "cooled", steps=20, overrides=[f"training.steps={STEP}"])


def test_an_extension_changes_length_and_tables_and_begins_anew(tmp_path: Path, spm: Path) -> None:
    checkpoint, output = _checkpoint(tmp_path, spm), tmp_path / "longer"
    stage = write_extension(checkpoint, output, length=32, steps=30, warmup_steps=5)
    config = load_run_config(stage.recipe)
    assert (config.model.max_position_embeddings, config.model.relative_span) == (32, small_config().relative_span)
    assert (config.data.sequence_length, config.training.steps, config.schedule.warmup_steps) == (32, 30, 5)
    assert (config.training.init_from, config.training.continue_from) == (output / "start", None)
    report = json.loads((output / "start" / "import_report.json").read_text())
    assert any("rows 8 to 31 repeat rows 1 to 6" in line["reason"] for line in report)
    with pytest.raises(ConfigError, match=r"--set changes the model or its length"):
        write_extension(checkpoint, output, length=32, steps=30, overrides=["model.hidden_size=48"])


@pytest.mark.parametrize(
    ("saved", "steps", "error", "message"),
    [
        (False, 100, CheckpointError, r"step-50/manifest\.json: cannot be read"),
        (True, STEP, ConfigError, r"is of step 50, and training\.steps=50 counts from the beginning of that run"),
    ],
)
def test_a_start_that_is_missing_or_beyond_the_end_is_refused_before_anything_is_loaded(
    tmp_path: Path, prepared: Path, spm: Path, saved: bool, steps: int, error: type[Exception], message: str
) -> None:
    if saved:
        _checkpoint(tmp_path, spm)
    data = {"train": str(prepared / "train"), "tokenizer": str(prepared / "tokenizer" / "spm.model")}
    training = {"steps": steps, "output_dir": str(tmp_path / "new")}
    training["continue_from"] = str(tmp_path / "run" / "checkpoints" / f"step-{STEP}")
    with pytest.raises(error, match=message):
        prepare_run(write_json(tmp_path / "recipe.json", recipe(data=data, training=training)), [], world_size=1)
