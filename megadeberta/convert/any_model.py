"""Weights of any place: a run, a checkpoint, an imported folder, or a model of transformers or microsoft/DeBERTa."""

import dataclasses
import tempfile
from pathlib import Path

from megadeberta.convert.formats.families import without_head
from megadeberta.convert.formats.places import folder_of, generator_beside, is_ours
from megadeberta.convert.formats.read_folder import read_hf_folder
from megadeberta.convert.import_parts import import_parts
from megadeberta.data.tokenizer import find_tokenizer
from megadeberta.weights.hub import find_model
from megadeberta.weights.source import ModelSource, load_weights


def load_model(place: Path, *, parts: bool = True) -> ModelSource:
    """The weights and the tokenizer at ``place``.

    Args:
        place: see :func:`megadeberta.weights.source.load_weights`; or a folder, a file or OWNER/MODEL of the hub that
            ``convert import`` reads.
        parts: of a folder that holds generator and discriminator, as the published v3, both; else the former.

    Raises:
        CheckpointError: no sound weights there, or none that predict tokens.
    """
    if is_ours(place):
        return load_weights(place)
    place = find_model(place)
    generator = generator_beside(place)
    if generator is not None and parts:
        return _both_parts(place, generator)
    imported = read_hf_folder(generator or place)
    if imported.missing:
        raise without_head(place, imported.missing[0])
    return ModelSource(place, imported.config, imported.weights, find_tokenizer(folder_of(place)))


def _both_parts(place: Path, generator: Path) -> ModelSource:
    with tempfile.TemporaryDirectory() as scratch:
        import_parts(place, Path(scratch) / "parts", generator=generator)
        found = load_weights(Path(scratch) / "parts")
    return dataclasses.replace(found, folder=place, tokenizer=find_tokenizer(place))
