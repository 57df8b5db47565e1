"""Initial weights from a folder that `megadeberta convert import` wrote."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from megadeberta.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "spm.model"


def load_initial_weights(model: nn.Module, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Copy ``folder/model.safetensors``, as `megadeberta convert import` writes it, into a model not yet wrapped.

    Args:
        tokenizer: of the training data; must be the folder's own where it has one.

    Raises:
        CheckpointError: the file is missing or unreadable, its names or shapes are not exactly the
            model's, a value is not finite, or the weights are for another vocabulary.
    """
    path = folder / WEIGHTS_FILE
    _check_vocabulary(folder / VOCABULARY_FILE, tokenizer)
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"training.init_from={folder}: {WEIGHTS_FILE} cannot be read ({error}); make the folder with "
            "`megadeberta convert import`"
        ) from None
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if wanted != found:
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        name = different[0]
        raise CheckpointError(
            f"{path}: {len(different)} tensors do not fit the recipe's model, first {name}: the recipe has "
            f"{wanted.get(name, 'none')}, the file {found.get(name, 'none')}; use the model section that the folder's "
            "model.json shows, and the objective of its objective.json if it has one"
        )
    bad = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {bad} holds values that are not finite; the weights are damaged, use others")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _check_vocabulary(own: Path, tokenizer: Path | None) -> None:
    """Row i of the word table means piece i of one vocabulary; in another one of that size it would mean nothing."""
    if tokenizer is None or not own.is_file() or own.read_bytes() == tokenizer.read_bytes():
        return
    raise CheckpointError(
        f"training.init_from={own.parent}: these weights are for the vocabulary of {own.name} there, which is not "
        f"data.tokenizer={tokenizer}; prepare the data with the former (megadeberta prep --tokenizer)"
    )
