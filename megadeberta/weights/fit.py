"""Whether the weights in an imported folder are those of a recipe, by names, shapes and vocabulary. Without torch."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from megadeberta.config.set_files import tokenizer_in
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import Shapes
from megadeberta.weights.safetensors_file import SAFETENSORS
from megadeberta.weights.shapes import compare_shapes


def check_fits(folder: Path, shapes: Shapes, *, tokenizer: Path | None) -> None:
    """Refuse weights of another model.

    Args:
        shapes: of all parameters of the recipe's model, whole, by name.
        tokenizer: of the training data; must be the folder's own where it has one.

    Raises:
        CheckpointError: the file is missing or unreadable, its names or shapes are not exactly the model's, or the
            weights are for another vocabulary.
    """
    _check_vocabulary(tokenizer_in(folder), tokenizer)
    path = folder / SAFETENSORS
    try:
        with safe_open(path, framework="numpy") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"training.init_from={folder}: {SAFETENSORS} cannot be read ({error}); make the folder with "
            "`megadeberta convert import`"
        ) from None
    compare_shapes(
        shapes,
        found,
        str(path),
        model="the recipe's model",
        remedy="; use the model section that the folder's model.json shows, and the objective of its objective.json "
        "if it has one",
    )


def _check_vocabulary(own: Path, tokenizer: Path | None) -> None:
    """Row i of the word table belongs to piece i of one vocabulary; with another of the same size it has no meaning."""
    if tokenizer is None or not own.is_file() or own.read_bytes() == tokenizer.read_bytes():
        return
    raise CheckpointError(
        f"training.init_from={own.parent}: these weights are for the vocabulary of {own.name} there, which is not "
        f"data.tokenizer={tokenizer}; prepare the data with the former (megadeberta prep --tokenizer)"
    )
