"""A learning rate that jumps where a run goes on is refused, and one that its recipe had planned is none."""

from typing import Any

import pytest

from megadeberta.checkpoint.rate_jump import changed_rates, rates_at_resume, refuse_jump
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from tests.models import run_config

STEPS = 100


def _recipe(**sections: Any) -> RunConfig:
    schedule = {"name": "linear_shift", "warmup_steps": 10} | sections.pop("schedule", {})
    return run_config(schedule=schedule, training={"steps": STEPS} | sections.pop("training", {}), **sections)


def _saved(**sections: Any) -> dict[str, Any]:
    return _recipe(**sections).model_dump(mode="json")


@pytest.mark.parametrize("step", [0, 1, 2, 9, 10, 11, 50, 98, 99, 100])
@pytest.mark.parametrize("name", ["linear", "linear_shift", "cosine", "wsd", "constant"])
def test_the_schedule_of_the_run_itself_never_jumps(name: str, step: int) -> None:
    schedule = {"name": name, "warmup_steps": 40 if name == "linear" else 10}  # linear drops at the end of its warm-up
    config = _recipe(schedule=schedule)
    refuse_jump(config, config.model_dump(mode="json"), step, checkpoint="step")
    assert changed_rates(config, config.model_dump(mode="json"), step) == []


@pytest.mark.parametrize(
    ("step", "changes", "said"),
    [
        (100, {"training": {"steps": 200}}, r"optimizer.lr\) would jump .* 47.4 times as high, by training.steps 100"),
        (50, {"training": {"steps": 400}}, r"times as high, by training.steps 100 -> 400; change the recipe back"),
        (50, {"optimizer": {"lr": 2e-3}}, r"by optimizer.lr 0.001 -> 0.002; change the recipe back, or accept it with"),
        (50, {"optimizer": {"lr": 1e-4}}, r"from 5.67e-04 to 5.56e-05, 0.098 times"),
        (50, {"schedule": {"name": "constant"}}, r"by schedule.name linear_shift -> constant"),
        (50, {"schedule": {"warmup_steps": 80}}, r"by schedule.warmup_steps 10 -> 80"),
        (1, {"optimizer": {"lr": 1e-2}}, r"would jump from 0.00e\+00 to 1.00e-03, by"),
        (50, {"optimizer": {"lr": 1e-3, "discriminator_lr": 4e-3}}, r"\(optimizer.discriminator_lr\) would jump"),
    ],
)
def test_a_jump_is_refused_with_what_makes_it_unless_it_is_allowed(step: int, changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_jump(_recipe(**changes), _saved(), step, checkpoint="runs/x/checkpoints/step-1")
    told = _recipe(**changes, checkpoint={"learning_rate_jump": "allow"})
    refuse_jump(told, _saved(), step, checkpoint="step")
    assert len(changed_rates(told, _saved(), step)) >= 1


def test_a_small_change_is_told_and_not_refused() -> None:
    config = _recipe(training={"steps": 105})
    refuse_jump(config, _saved(), 50, checkpoint="step")
    (line,) = changed_rates(config, _saved(), 50)
    assert line.startswith("the learning rate (optimizer.lr) goes from 5.67e-04 to 5.79e-04, 1.02 times as high:")


def test_where_no_step_is_left_or_the_saved_recipe_is_of_another_version_nothing_is_said() -> None:
    saved = _saved(training={"steps": 400})
    assert rates_at_resume(_recipe(), saved, STEPS) == []
    assert rates_at_resume(_recipe(), {"optimizer": {}}, 50) == []
