"""What the study trains: arms, each a few changes of one recipe, and seeds, in the order in which they are worth most.

`plan.json` holds it. Standard library alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLAN, RESULTS = HERE / "plan.json", HERE / "results"
FULL, RANDOM, THEIRS = "full", "random", "transformers"
"""Arms that others are compared with: our model, its weights before the first step, and transformers' own model."""


@dataclass(frozen=True)
class Arm:
    """A model or a way of training it."""

    name: str
    title: str
    group: str
    """The table of the page that it stands in."""
    changes: Mapping[str, Any]
    """Of the recipe: section -> setting -> value, nested as there."""
    tune: bool = False
    """Its models are fine-tuned on the labelled sets, which takes about as long as to train them."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    recipe: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its result, ``ARM-SEED``."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def result(self) -> Path:
        """The file that holds its result once it is done."""
        return RESULTS / f"{self.name}.json"

    def write_recipe(self, folder: Path, tokens: Path) -> Path:
        """Beside ``folder``, the recipe that trains into it on the token files at ``tokens``."""
        files = {"train": "train", "valid": "valid", "tokenizer": "tokenizer/spm.model"}
        changes = {
            "name": self.name,
            "data": {name: str(tokens.resolve() / file) for name, file in files.items()},
            "training": {"seed": self.seed, "output_dir": str(folder)},
        }
        path = folder.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(merged(self.recipe, changes)))
        return path

    @property
    def tokens(self) -> int:
        """That it is trained on."""
        steps, batch = self.recipe["training"]["steps"], self.recipe["deepspeed"]["train_batch_size"]
        return int(steps * batch * self.recipe["data"]["sequence_length"])


@dataclass(frozen=True)
class Plan:
    """The whole study."""

    recipe: Mapping[str, Any]
    tune: Mapping[str, Any]
    """Settings of `megadeberta finetune`."""
    arms: Mapping[str, Arm]
    order: tuple[tuple[str, int], ...]
    """Arm and seed of each run, the most valuable first."""

    def runs(self) -> Iterator[Run]:
        """All runs in their order."""
        for name, seed in self.order:
            arm = self.arms[name]
            yield Run(arm, seed, merged(self.recipe, arm.changes))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the changes put in at their depth."""
    found = dict(base)
    for name, value in changes.items():
        is_section = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if is_section else value
    return found


def read_plan(path: Path = PLAN) -> Plan:
    """The plan of a file: rounds of arms, each run with every seed of the round before the next round begins."""
    content = json.loads(path.read_text())
    arms = {name: Arm(name, **arm) for name, arm in content["arms"].items()}
    order = [(arm, seed) for part in content["order"] for seed in part["seeds"] for arm in part["arms"]]
    return Plan(content["recipe"], content["finetune"], arms, tuple(dict.fromkeys(order)))
