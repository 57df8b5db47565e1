"""The model to fine-tune as a folder of transformers: of a run, a checkpoint, an import, an export or the hub."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.families import FAMILIES
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.import_folder import import_folder
from megadeberta.errors import CheckpointError
from megadeberta.weights.hub import find_model
from megadeberta.weights.source import MODEL_JSON

log = logging.getLogger(__name__)

_CONFIG = "config.json"
_TOKENIZERS = ("tokenizer.json", "spm.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Start:
    """Where fine-tuning starts."""

    name: str
    """As the user gave it."""
    folder: Path
    """For ``from_pretrained``; a temporary one, if the weights were not transformers' own."""
    config: dict[str, Any]
    """Its ``config.json``."""

    @property
    def hidden_size(self) -> int:
        """Width of the encoder."""
        return int(self.config["hidden_size"])

    def longest(self) -> int | None:
        """Tokens of the longest sequence; None where no absolute positions are read at the input."""
        biased = self.config.get("position_biased_input", True)
        return int(self.config["max_position_embeddings"]) if biased else None


@contextlib.contextmanager
def open_start(place: Path) -> Iterator[Start]:
    """The model at ``place``; of a run with two parts, the discriminator.

    Raises:
        CheckpointError: no such model, damaged weights, a family without classes here, or no tokenizer beside it.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        folder = _transformers_folder(place, Path(scratch))
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise CheckpointError(
                f"{place}: has no tokenizer ({', '.join(_TOKENIZERS)}); put the one of these weights there"
            )
        yield Start(str(place), folder, json.loads((folder / _CONFIG).read_bytes()))


def _transformers_folder(place: Path, scratch: Path) -> Path:
    """The folder itself, or an export into ``scratch``."""
    is_ours = place.is_dir() and ((place / MODEL_JSON).is_file() or not _holds_other_config(place))
    if is_ours:
        export_checkpoint(place, scratch / "model", kind=ModelKind.BACKBONE)
        return scratch / "model"
    found = find_model(place)
    if not found.is_dir():
        raise CheckpointError(f"{place}: is a file; give the folder that it lies in")
    known = _model_type(found)
    if known is None:  # of microsoft/DeBERTa
        import_folder(found, scratch / "imported", allow_new=True)
        return _transformers_folder(scratch / "imported", scratch)
    if known not in {family.model_type for family in FAMILIES if family.has_fast_attention}:
        raise CheckpointError(f"{found / _CONFIG}: model_type is {known!r}, which is no DeBERTa; give a DeBERTa")
    return found


def _holds_other_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_CONFIG, "model_config.json"))


def _model_type(folder: Path) -> str | None:
    try:
        values = json.loads((folder / _CONFIG).read_bytes())
        return values.get("model_type") if isinstance(values, dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _CONFIG}: is not a configuration ({error}); get it again") from None
