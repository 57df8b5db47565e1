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
from megadeberta.convert.formats.family import ModelKind
from megadeberta.convert.formats.places import HF_CONFIG, is_ours
from megadeberta.convert.import_folder import import_folder
from megadeberta.finetune.start_place import check_tokenizer, find_start, is_of_transformers

log = logging.getLogger(__name__)


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
        check_tokenizer(folder, named=place)
        yield Start(str(place), folder, json.loads((folder / HF_CONFIG).read_bytes()))


def _transformers_folder(place: Path, scratch: Path) -> Path:
    """The folder itself, or an export into ``scratch``."""
    found = find_start(place)
    if is_ours(found):
        export_checkpoint(found, scratch / "model", kind=ModelKind.BACKBONE)
        return scratch / "model"
    if is_of_transformers(found):
        return found
    import_folder(found, scratch / "imported", allow_new=True)  # of microsoft/DeBERTa
    return _transformers_folder(scratch / "imported", scratch)
