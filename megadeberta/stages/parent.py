"""The run that a stage goes on from: its checkpoint, and its recipe as values to change."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, list_checkpoints
from megadeberta.checkpoint.newest import checkpoint_at
from megadeberta.config.changes import flat_settings
from megadeberta.config.load import apply_overrides, parse_run_config
from megadeberta.config.redact import HIDDEN
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.storage import write_file

Values = dict[str, Any]


@dataclass(frozen=True)
class Parent:
    """A verified checkpoint and the recipe that it was trained with."""

    folder: Path
    step: int
    values: Values
    """The resolved recipe."""

    @classmethod
    def at(cls, path: Path) -> "Parent":
        """Of a ``step-N`` folder, or of a run's newest sound checkpoint.

        Raises:
            CheckpointError: there is no sound one.
        """
        folder, manifest = checkpoint_at(path)
        return cls(folder, manifest.step, manifest.run.config)

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.values.get("name", "run"))

    def config(self, plugins: Sequence[str] = ()) -> RunConfig:
        """Its recipe.

        Raises:
            ConfigError: it is not one of this version, or names plugins that were not given.
        """
        return parse_values(self.values, plugins, source=str(self.folder))


def parse_values(values: Values, plugins: Sequence[str], *, source: str) -> RunConfig:
    """A recipe that a checkpoint holds, checked. Its plugins are imported only where the user named them too.

    Raises:
        ConfigError: what is wrong, or what is hidden in it.
    """
    unknown = [name for name in values.get("plugins", ()) if name not in plugins]
    if unknown:
        raise ConfigError(f"{source}: the run had --plugin {unknown[0]}: add that if you trust it")
    hidden = [key for key, value in flat_settings(values) if isinstance(value, str) and HIDDEN in value]
    if hidden:
        raise ConfigError(
            f"{source}: {hidden[0]} is a secret that no checkpoint holds; give it with --set {hidden[0]}=…"
        )
    return parse_run_config(values, source=source)


def stage_values(parent: Parent, output: Path, changes: Values, overrides: Sequence[str]) -> Values:
    """The recipe of a stage: the parent's with sections changed, and the user's overrides over both.

    Raises:
        ConfigError: ``output`` holds a run.
    """
    if list_checkpoints(output / CHECKPOINTS_FOLDER):
        raise ConfigError(f"--output {output}: holds a run already; choose a new folder")
    values: Values = copy.deepcopy(parent.values)
    for section, content in changes.items():
        old = values.get(section)
        values[section] = old | content if isinstance(content, dict) and isinstance(old, dict) else content
    values["training"] |= {"output_dir": str(output)}
    # A stage has checkpoints of its own only after its first save.
    values["checkpoint"] = values.get("checkpoint", {}) | {"resume": "auto"}
    apply_overrides(values, overrides)
    return values


def write_recipe(output: Path, name: str, text: str) -> Path:
    """The recipe's file in the stage's folder.

    Raises:
        StorageError: the disk refused.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / name
    write_file(path, f"{text}\n".encode())
    return path
