"""``megadeberta cooldown``: the recipe of a run that goes on from a checkpoint with a rate that decays to the end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megadeberta.checkpoint.rate_jump import differs
from megadeberta.config.run import RunConfig
from megadeberta.config.schedule import learning_rate_factor
from megadeberta.errors import ConfigError
from megadeberta.stages.parent import Parent, parse_values, stage_values, write_recipe

Shape = Literal["1-sqrt", "linear"]
COOLDOWN_RECIPE = "cooldown.json"
"""In the folder of the new run."""


@dataclass(frozen=True)
class Stage:
    """A recipe that is written and can be launched."""

    recipe: Path
    parent: Path
    """The checkpoint that it goes on from."""
    step: int
    """Of that checkpoint."""
    config: RunConfig


def write_cooldown(
    checkpoint: Path,
    output: Path,
    *,
    steps: int,
    shape: Shape = "1-sqrt",
    end_ratio: float = 0.0,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Stage:
    """Write ``output/cooldown.json``: the run of ``checkpoint`` for ``steps`` more steps, all of them decaying.

    The run that it describes equals, bit for bit, one whose recipe had this schedule from the beginning.

    Args:
        checkpoint: a ``step-N`` folder, or a run: its newest sound checkpoint.
        shape: of the decay, see ``ScheduleConfig.decay_shape``.
        end_ratio: multiple of the peak at the last step.

    Raises:
        CheckpointError: the checkpoint is not sound.
        ConfigError: the run was warming up or decaying there, or the recipe that comes out is none.
    """
    parent = Parent.at(checkpoint)
    total = parent.step + steps
    decay = {"name": "wsd", "decay_steps": steps, "decay_shape": shape, "end_ratio": end_ratio}
    changes: dict[str, Any] = {
        "name": f"{parent.name}-cooldown",
        "description": f"Cool-down of {parent.folder} over {steps} steps ({shape}).",
        "schedule": decay,
        "training": {"steps": total, "continue_from": str(parent.folder), "init_from": None},
    }
    values = stage_values(parent, output, changes, overrides)
    config = parse_values(values, plugins, source=f"cool-down of {parent.folder}")
    if config.training.steps <= parent.step:
        raise ConfigError(f"training.steps={config.training.steps} ends before the checkpoint's step {parent.step}")
    _check_rate(parent, parent.config(plugins), config)
    path = write_recipe(output, COOLDOWN_RECIPE, json.dumps(values, indent=2))
    return Stage(path, parent.folder, parent.step, config)


def _check_rate(parent: Parent, before: RunConfig, config: RunConfig) -> None:
    """The decay begins where the run stood: a jump would undo what it learned, or leave it as it is."""
    step = parent.step
    if step < before.schedule.warmup_steps:
        raise ConfigError(
            f"{parent.folder}: the run warms up until step {before.schedule.warmup_steps}; give a checkpoint after it"
        )
    # The rate of the step before, where the run ended here and had no next one.
    then = min(step, before.training.steps - 1)
    old = before.optimizer.lr * learning_rate_factor(before.schedule, step=then, total_steps=before.training.steps)
    new = config.optimizer.lr * learning_rate_factor(config.schedule, step=step, total_steps=config.training.steps)
    if differs(old, new):
        raise ConfigError(
            f"{parent.folder}: the learning rate there is {old:.3g}, and a decay from {new:.3g} would begin with a "
            "jump; give a checkpoint of the constant part (schedule.name constant, or wsd before its decay), or accept "
            f"this one with --set optimizer.lr={old:.6g}"
        )
