"""Predictions for ``[MASK]`` in a text, by our own model with its mask decoder.

Shapes: Q masks in the text · V vocabulary · P pieces that are offered.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megadeberta.convert.any_model import load_model
from megadeberta.convert.mask_text import check_has_mask, check_top_k, encode_masks, offered_pieces
from megadeberta.data.tokenizer import WORD_BOUNDARY, load_tokenizer
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel
from megadeberta.weights.source import ModelSource


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
        path: see :func:`megadeberta.convert.any_model.load_model`.

    Raises:
        CheckpointError: no model there, or it has no prediction head or no tokenizer.
        DataError: the text has no ``[MASK]`` or is too long.
        ConfigError: ``top_k`` is not between 1 and the number of pieces.
    """
    check_has_mask(text)
    source = load_model(path, parts=False).token_model()
    vocabulary = load_tokenizer(source.checked_tokenizer())
    offered = offered_pieces(vocabulary)
    check_top_k(top_k, offered)
    ids, places = encode_masks(vocabulary, text, longest=source.config.max_position_embeddings)
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
