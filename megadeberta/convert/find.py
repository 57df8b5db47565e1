"""A model by its name, with all that its files say without their tensors: refused before torch is loaded."""

from pathlib import Path

from megadeberta.convert.formats.families import check_family
from megadeberta.convert.formats.places import is_ours
from megadeberta.weights.hub import check_ours, find_model
from megadeberta.weights.place import weights_path


def find_any_model(place: Path, *, of_others: bool = False) -> Path:
    """The folder or file of weights of any kind; those of the hub are fetched first.

    Args:
        place: see :func:`megadeberta.convert.any_model.load_model`.
        of_others: models of transformers that are no DeBERTa will do as well.

    Raises:
        CheckpointError: nothing there that can be weights of such a model.
    """
    if is_ours(place):
        check_ours(place)
        return place
    found = find_model(place)
    if not of_others:
        check_family(found)
        weights_path(found)
    return found
