"""Where in a folder, or beside a file, the configuration, the tokenizer and the other part of a model lie.

Published v3 folders hold the discriminator in ``pytorch_model.bin`` with ``config.json`` and the generator beside it in
``pytorch_model.generator.bin`` with ``generator_config.json``. Never torch: a mistake in a name is said at once.
"""

import json
from pathlib import Path
from typing import Any

from megadeberta.errors import CheckpointError
from megadeberta.weights.hub import MODEL_JSON

HF_CONFIG, MICROSOFT_CONFIG = "config.json", "model_config.json"
"""transformers' name, and that of microsoft/DeBERTa (``cache_utils.py``)."""
GENERATOR_CONFIG = "generator_config.json"
GENERATOR_FILES = ("model.generator.safetensors", "pytorch_model.generator.bin")


def is_ours(place: Path) -> bool:
    """Whether a folder is read as weights of ours, rather than as those of transformers or microsoft/DeBERTa."""
    return place.is_dir() and ((place / MODEL_JSON).is_file() or not config_path(place).is_file())


def folder_of(place: Path) -> Path:
    """The folder itself, or that of a file of weights."""
    return place.parent if place.is_file() else place


def config_path(place: Path) -> Path:
    """The configuration of a folder or of a file of weights; transformers' name if there is none, for the error."""
    if place.is_file() and place.name in GENERATOR_FILES:
        return place.parent / GENERATOR_CONFIG
    folder = folder_of(place)
    return folder / next((name for name in (HF_CONFIG, MICROSOFT_CONFIG) if (folder / name).is_file()), HF_CONFIG)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a configuration.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; give a folder of transformers or microsoft/DeBERTa") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values


def generator_beside(place: Path) -> Path | None:
    """The generator's file in a folder that holds both parts; None of a file, which is one part."""
    if not place.is_dir():
        return None
    return next((place / name for name in GENERATOR_FILES if (place / name).is_file()), None)


def find_generator(discriminator: Path, generator: Path | None) -> Path | None:
    """Where the generator is: as given, or beside its discriminator.

    Raises:
        CheckpointError: what was given as the generator is the discriminator.
    """
    if generator is None:
        return generator_beside(discriminator)
    beside = generator_beside(generator)
    if beside is not None:
        return beside
    if generator.resolve() == discriminator.resolve():
        raise CheckpointError(
            f"{generator}: is given as discriminator and as generator, and holds no generator of its own "
            f"({' or '.join(GENERATOR_FILES)}); give another folder or file, or start one with --new-generator"
        )
    return generator
