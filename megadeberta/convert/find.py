"""A model by its name, with all that its files say without their tensors: refused before torch is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.checkpoint.newest import manifest_at
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.set_files import tokenizer_in
from megadeberta.convert.formats.families import check_family, check_predicts
from megadeberta.convert.formats.places import folder_of, generator_beside, is_ours
from megadeberta.data.tokenizer import find_tokenizer
from megadeberta.weights.hub import MODEL_JSON, check_ours, find_model
from megadeberta.weights.recorded import imported_sections, sections_of


@dataclass(frozen=True)
class RecordedModel:
    """What the files beside weights say of them."""

    folder: Path
    tokenizer: Path | None
    config: ModelConfig | None
    """None where only the tensors say what model it is."""
    objective: ObjectiveConfig | None = None
    """None of weights that are not ours."""
    recipe: Mapping[str, Any] | None = None
    """Of the run that they come from, if any."""


def find_any_model(place: Path, *, of_others: bool = False) -> Path:
    """The folder or file of weights of any kind; those of the hub are fetched first.

    Args:
        place: see :func:`megadeberta.convert.any_model.load_model`.
        of_others: models of transformers that are no DeBERTa, or have other heads, will do as well.

    Raises:
        CheckpointError: nothing there that can be weights of such a model.
    """
    if is_ours(place):
        check_ours(place)
        return place
    found = find_model(place)
    if not of_others:
        check_family(found)
        check_predicts(generator_beside(found) or found)
    return found


def recorded_model(place: Path) -> RecordedModel:
    """What is known of the weights that :func:`find_any_model` found.

    Raises:
        CheckpointError: what their files say is damaged, or of no model of ours.
    """
    if not is_ours(place):
        return RecordedModel(place, find_tokenizer(folder_of(place)), check_family(generator_beside(place) or place))
    if (place / MODEL_JSON).is_file():
        return RecordedModel(place, tokenizer_in(place), *imported_sections(place))
    folder, manifest = manifest_at(place)
    return RecordedModel(folder, tokenizer_in(folder), *sections_of(manifest, folder), recipe=manifest.run.config)
