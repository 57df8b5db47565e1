"""What the files of weights of ours say of them without their tensors: model, objective and parts. Without torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from megadeberta.checkpoint.manifest import MANIFEST_NAME, Manifest
from megadeberta.checkpoint.newest import manifest_at
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.section import Section
from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.layers.heads import MlmHead
from megadeberta.layers.layer import Layer
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.weights.hub import MODEL_JSON

_Section = TypeVar("_Section", bound=Section)

OBJECTIVE_JSON = "objective.json"
"""In an imported folder of two parts: the dump of the ObjectiveConfig that says how they share tables."""


def recorded_sections(path: Path) -> tuple[Path, ModelConfig, ObjectiveConfig]:
    """The folder of the weights that ``weights.source.load_weights`` reads at ``path``, and what they are.

    Raises:
        CheckpointError: no weights of ours, or damaged as far as names and sizes of files tell.
    """
    if (path / MODEL_JSON).is_file():
        return path, *imported_sections(path)
    folder, manifest = manifest_at(path)
    return folder, *sections_of(manifest, folder)


def sections_of(manifest: Manifest, folder: Path) -> tuple[ModelConfig, ObjectiveConfig]:
    """Of the run that wrote a checkpoint.

    Raises:
        CheckpointError: its recipe is none that this version and its plugins read.
    """
    try:
        recipe = manifest.run.config
        model, objective = recipe["model"], recipe.get("objective", {})
        sections = ModelConfig.model_validate(model), ObjectiveConfig.model_validate(objective)
        objective_of(sections[1])
    except ConfigError as error:
        hint = "".join(f" --plugin {name}" for name in recipe.get("plugins", ()))
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: {error}" + (f"; the run had{hint}: add that if you trust it" if hint else "")
        ) from None
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: its configuration has no model section that this megadeberta reads "
            f"({type(error).__name__}); use the megadeberta version that wrote it"
        ) from None
    return sections


def imported_sections(path: Path) -> tuple[ModelConfig, ObjectiveConfig]:
    """Of a folder that ``convert import`` wrote.

    Raises:
        CheckpointError: its files are damaged.
    """
    return _read_json(path / MODEL_JSON, ModelConfig), _imported_objective(path / OBJECTIVE_JSON)


def parts_of(config: ModelConfig, objective: ObjectiveConfig) -> tuple[str, ...]:
    """The parts that the objective trains; none where it trains one model."""
    return tuple(part for part in objective_of(objective).models(config, objective) if part)


def mask_head(folder: Path, layers: Sequence[Layer], objective: ObjectiveConfig) -> MlmHead:
    """The layer that predicts masked tokens.

    Raises:
        CheckpointError: the objective trains no such head, or only on next tokens.
    """
    trained = objective_of(objective)
    if trained.reads_left_to_right and "mlm_loss" not in trained.loss_weights(objective):
        raise CheckpointError(
            f"{folder}: objective {objective.name} predicts next tokens from those before and never saw a [MASK], so "
            "it fills none, and transformers has no such DeBERTa; export the encoder alone with --model backbone"
        )
    head = next((layer for layer in layers if isinstance(layer, MlmHead)), None)
    if head is None:
        raise CheckpointError(
            f"{folder}: objective {objective.name} trains no head that predicts tokens; export the encoder alone with "
            "--model backbone"
        )
    return head


def check_has_tokenizer(folder: Path, tokenizer: Path | None) -> Path:
    """The tokenizer beside weights.

    Raises:
        CheckpointError: there is none.
    """
    if tokenizer is None or not tokenizer.is_file():
        raise CheckpointError(f"{folder / TOKENIZER_FILE}: is missing; put the tokenizer of these weights there")
    return tokenizer


def lacks(folder: Path, config: ModelConfig, objective: ObjectiveConfig, part: str) -> CheckpointError:
    """What to tell who asks for a part that the objective does not train."""
    try:
        mask_head(folder, list_layers(config, objective), objective)
        advice = "export without --model"
    except CheckpointError:
        advice = "export the encoder with --model backbone"
    return CheckpointError(f"{folder}: has no {part} (objective {objective.name}); {advice}")


def _read_json(path: Path, section: type[_Section]) -> _Section:
    try:
        return section.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        what = "a model configuration" if section is ModelConfig else "an objective"
        raise CheckpointError(f"{path}: not {what} ({detail}); import the model again") from None


def _imported_objective(path: Path) -> ObjectiveConfig:
    if not path.is_file():
        return ObjectiveConfig()
    objective = _read_json(path, ObjectiveConfig)
    try:
        objective_of(objective)
    except ConfigError as error:
        raise CheckpointError(f"{path}: not an objective ({error}); import the model again") from None
    return objective
