"""The model that `finetune` is given, as far as its files say without their tensors. Without torch."""

from pathlib import Path

from megadeberta.convert.formats.families import FAMILIES
from megadeberta.convert.formats.places import HF_CONFIG, is_ours, read_config
from megadeberta.errors import CheckpointError
from megadeberta.weights.hub import check_ours, find_model

_TOKENIZERS = ("tokenizer.json", "spm.model", "vocab.json", "vocab.txt")


def find_start(place: Path) -> Path:
    """The folder to start from: of a run, an import, an export, microsoft/DeBERTa or the hub.

    Raises:
        CheckpointError: no such model, a file, a family without classes here, or no tokenizer beside it.
    """
    if is_ours(place):
        check_ours(place)
        return place
    found = find_model(place)
    if not found.is_dir():
        raise CheckpointError(f"{place}: is a file; give the folder that it lies in")
    if is_of_transformers(found):
        model_type = read_config(found / HF_CONFIG)["model_type"]
        if model_type not in {family.model_type for family in FAMILIES if family.has_fast_attention}:
            raise CheckpointError(
                f"{found / HF_CONFIG}: model_type is {model_type!r}, which is no DeBERTa; give a DeBERTa"
            )
        check_tokenizer(found, named=place)
    return found


def is_of_transformers(folder: Path) -> bool:
    """Whether its configuration names a model type, as those of microsoft/DeBERTa do not."""
    path = folder / HF_CONFIG
    return path.is_file() and read_config(path).get("model_type") is not None


def check_tokenizer(folder: Path, *, named: Path) -> None:
    """Refuse a folder of transformers without one.

    Args:
        named: the folder as the user gave it.

    Raises:
        CheckpointError: none of the usual files is there.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            f"{named}: has no tokenizer ({', '.join(_TOKENIZERS)}); put the one of these weights there"
        )
