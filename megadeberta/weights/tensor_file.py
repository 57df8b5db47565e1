"""Reading weights that may be damaged or hostile: safetensors, or a pickle of tensors and nothing else."""

import json
import pickle
import re
import warnings
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from megadeberta.errors import CheckpointError
from megadeberta.weights.hub import check_weights_file
from megadeberta.weights.place import weights_path
from megadeberta.weights.safetensors_file import SAFETENSORS, not_finite

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_model_tensors(place: Path) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a Hugging Face folder, or of one file, as they are on disk, and the file they came from.

    Raises:
        CheckpointError: no weights, damaged, unsafe, or not only tensors.
    """
    path = weights_path(place)
    if path.name.endswith(".index.json"):
        return _read_indexed(path), path
    check_weights_file(path)
    return read_tensor_file(path), path


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU, by name; a pickle is read with a list of allowed types.

    Raises:
        CheckpointError: truncated, damaged, a pickle that asks for more than tensors, or not a dict of tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); the file is damaged, get it again") from None
    return _read_pickle(path)


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: the first tensor that has one, and how many there are.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(not_finite(source, bad, len(tensors)))


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a protocol of pickle that may be refused: so it is
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        if asked is None:
            raise CheckpointError(f"{path}: is no file of torch.save, or it is damaged; get it again") from None
        raise CheckpointError(
            f"{path}: asks for {asked[1]}, which is not a tensor; refused, because unpickling it would run code. "
            f"Convert it to {SAFETENSORS} where you trust it"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError) as error:
        first_line = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path}: cannot be read ({first_line}); the file is damaged, get it again") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path}: is not a dict of tensors by name; give the file of a model's state_dict()")
    return {name: tensor.detach() for name, tensor in content.items()}


def _read_indexed(index: Path) -> dict[str, Tensor]:
    """Weights in several files, with an index that says which tensor is in which."""
    try:
        files = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(files.values()))
        plain = all(_PLAIN_NAME.fullmatch(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of weights ({type(error).__name__}); get it again") from None
    if not plain:
        raise CheckpointError(f"{index}: names files that are not plain names in its own folder; refused")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent / absent[0]}: is missing, and {index.name} names it; get it too")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_tensor_file(index.parent / name)
    if missing := sorted(files.keys() - tensors.keys()):
        raise CheckpointError(f"{index}: promises {missing[0]}, which none of its {len(names)} files holds")
    return tensors
