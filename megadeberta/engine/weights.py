"""Full fp32 weights out of, and initial weights into, a model under any ZeRO stage."""

from pathlib import Path

import deepspeed
import safetensors.torch
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors import SafetensorError
from torch import Tensor, nn

from megadeberta.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "spm.model"


def gather_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """Every parameter under its global name, fp32 on the CPU; a tied one once, under the name of its owner.

    Collective over the data-parallel ranks: one gather per parameter under ZeRO. Rank 0 keeps the tensors, the others
    return an empty dict.
    """
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        if full is None:  # ZeRO-0: the parameter is whole here
            full = parameter.detach()
        if engine.global_rank == 0:
            weights[name] = full.detach().to("cpu", torch.float32, copy=True).view(_full_shape(parameter))
    return weights


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


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    """ZeRO-3 leaves an empty tensor in place of a partitioned parameter and its shape in ``ds_shape``."""
    return getattr(parameter, "ds_shape", parameter.shape)
