"""``megadeberta extend``: weights and the recipe of a run that goes on with longer sequences.

Torch is loaded for the weights, when the recipe is known to be one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from megadeberta.config.model import ModelConfig
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.stages.cooldown import Stage
from megadeberta.stages.longer_model import longer_model
from megadeberta.stages.parent import Parent, Values, parse_values, stage_values, write_recipe

EXTEND_RECIPE, START_FOLDER = "extend.json", "start"
"""In the folder of the new run: its recipe, and the weights that it starts from."""


def write_extension(
    checkpoint: Path,
    output: Path,
    *,
    length: int,
    steps: int,
    warmup_steps: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Stage:
    """Write ``output/start``, the weights for sequences of ``length``, and ``output/extend.json``, which trains them.

    Optimizer state and steps begin anew, with a warm-up of their own.

    Args:
        checkpoint: a ``step-N`` folder, or a run: its newest sound checkpoint.
        warmup_steps: of the new run; as the old one's if not given.

    Raises:
        CheckpointError: the checkpoint is not sound.
        ConfigError: the length is no longer one, or the recipe that comes out is none.
    """
    parent = Parent.at(checkpoint)
    before = parent.config(plugins)
    trained = before.data.sequence_length
    if length <= trained:
        raise ConfigError(f"--length {length}: the run was trained on {trained} tokens per sequence; give more")
    model, start = longer_model(before.model, length), output / START_FOLDER
    changes = _changes(parent, model, start, length=length, trained=trained, steps=steps)
    changes["schedule"] = {} if warmup_steps is None else {"warmup_steps": warmup_steps}
    values = stage_values(parent, output, changes, overrides)
    config = parse_values(values, plugins, source=f"extension of {parent.folder}")
    if config.model != model or config.data.sequence_length != length:
        raise ConfigError("--set changes the model or its length; change them in a recipe of your own, or --length")
    _check_warmup(config, is_of_parent=warmup_steps is None)
    from megadeberta.stages.extension_weights import write_extension_weights

    write_extension_weights(parent, start, trained=trained, length=length)
    path = write_recipe(output, EXTEND_RECIPE, json.dumps(values, indent=2))
    return Stage(path, parent.folder, parent.step, config)


def _check_warmup(config: RunConfig, *, is_of_parent: bool) -> None:
    steps, warmup = config.training.steps, config.schedule.warmup_steps
    if warmup >= steps:
        whose = " of the old run" if is_of_parent else ""
        raise ConfigError(f"--steps {steps} ends within the warm-up{whose}, {warmup} steps; give --warmup-steps below")


def _changes(parent: Parent, model: ModelConfig, start: Path, *, length: int, trained: int, steps: int) -> Values:
    """What the new recipe has other than the old one."""
    return {
        "name": f"{parent.name}-{length}",
        "description": f"Extension of {parent.folder} from {trained} to {length} tokens per sequence.",
        "model": model.model_dump(mode="json"),
        "data": {"sequence_length": length},
        "training": {"steps": steps, "batch_stages": [], "init_from": str(start), "continue_from": None},
    }
