"""Predictions for ``[MASK]`` in a text, by our own model with its mask decoder.

Shapes: Q masks in the text · V vocabulary · P pieces that are offered.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megadeberta.convert.formats.places import config_path
from megadeberta.convert.formats.read_folder import read_hf_folder
from megadeberta.data.tokenizer import MASK, WORD_BOUNDARY, PieceKind, find_tokenizer, load_tokenizer
from megadeberta.errors import CheckpointError, ConfigError, DataError
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import MODEL_JSON, ModelSource, load_weights


@dataclass(frozen=True)
class Guess:
    """One piece for one mask."""

    piece: str
    probability: float

    @property
    def text(self) -> str:
        """The piece as it reads, a word boundary as a space."""
        return self.piece.replace(WORD_BOUNDARY, " ")


def predict_masks(path: Path, text: str, *, top_k: int = 5) -> list[list[Guess]]:
    """The ``top_k`` likeliest pieces for every ``[MASK]`` in ``text``, in order.

    Probabilities are over all pieces of the vocabulary; the special tokens and the spare rows of the word table are
    never offered.

    Args:
        path: a run, a checkpoint or an imported folder (see ``load_weights``), or a Hugging Face folder.

    Raises:
        CheckpointError: no model there, or it has no prediction head or no tokenizer.
        DataError: the text has no ``[MASK]`` or is too long.
        ConfigError: ``top_k`` is not between 1 and the number of pieces.
    """
    source = _load(path)
    vocabulary = load_tokenizer(source.checked_tokenizer())
    offered = torch.from_numpy(vocabulary.piece_kinds() != PieceKind.SPECIAL).nonzero().flatten()  # [P]
    if not 1 <= top_k <= len(offered):
        raise ConfigError(f"--top-k {top_k} is not between 1 and {len(offered)}, the number of pieces")
    ids = vocabulary.fast().encode(text).ids
    places = [place for place, token_id in enumerate(ids) if token_id == vocabulary.mask_id]
    _check_text(text, len(ids), len(places), source.config.max_position_embeddings)
    values, pieces = _logits(source, ids, places)[:, offered].softmax(-1).topk(top_k)
    return [
        [Guess(vocabulary.piece(token_id), value) for value, token_id in zip(row, row_ids, strict=True)]
        for row, row_ids in zip(values.tolist(), offered[pieces].tolist(), strict=True)
    ]


def _logits(source: ModelSource, ids: list[int], places: list[int]) -> Tensor:
    """Vocabulary logits ``[Q, V]`` at these places of one sequence."""
    model = WholeModel(token_model_layers(source.config)).eval()
    model.load_state_dict(source.weights, strict=False)  # strict would want the tied decoder twice
    input_ids = torch.tensor([ids])
    with torch.no_grad():
        return model.mlm_logits(input_ids, torch.ones_like(input_ids), torch.tensor([places]))[0]


def _load(path: Path) -> ModelSource:
    is_hugging_face = config_path(path).is_file() and not (path / MODEL_JSON).is_file()
    if not is_hugging_face:
        return load_weights(path).token_model()
    imported = read_hf_folder(path)
    if imported.missing:
        raise CheckpointError(
            f"{path}: has no {imported.missing[0]}, without which nothing can be predicted; export with --model mlm"
        )
    return ModelSource(path, imported.config, imported.weights, find_tokenizer(path))


def _check_text(text: str, num_tokens: int, num_masks: int, longest: int) -> None:
    if num_masks == 0:
        raise DataError(f"the text holds no {MASK}: {text[:60]!r}; write {MASK} where a piece is to be predicted")
    if num_tokens > longest:
        raise DataError(f"the text has {num_tokens} tokens with [CLS] and [SEP], the model takes {longest}; shorten it")
