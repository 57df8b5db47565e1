"""What ``fill-mask`` is asked, checked before torch is loaded."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadeberta.convert.find import recorded_model
from megadeberta.data.tokenizer import MASK, PieceKind, VocabularyTokenizer, load_tokenizer
from megadeberta.errors import ConfigError, DataError
from megadeberta.layers.objectives import list_layers
from megadeberta.weights.recorded import check_has_tokenizer, mask_head


def check_has_mask(text: str) -> None:
    """Refuse a text in which there is nothing to predict.

    Raises:
        DataError: it holds no ``[MASK]``.
    """
    if MASK not in text:
        raise DataError(f"the text holds no {MASK}: {text[:60]!r}; write {MASK} where a piece is to be predicted")


def check_request(place: Path, text: str, top_k: int) -> None:
    """Refuse what ``fill_mask.predict_masks`` would, as far as the weights say it without their tensors.

    Raises:
        CheckpointError, ConfigError, DataError: see there.
    """
    model = recorded_model(place)
    if model.config is None:
        return
    if model.objective is not None:
        mask_head(model.folder, list_layers(model.config, model.objective), model.objective)
    vocabulary = load_tokenizer(check_has_tokenizer(model.folder, model.tokenizer))
    check_top_k(top_k, offered_pieces(vocabulary))
    encode_masks(vocabulary, text, longest=model.config.max_position_embeddings)


def offered_pieces(vocabulary: VocabularyTokenizer) -> NDArray[np.int64]:
    """Ids of what may stand for a mask ``[P]``: all but the special tokens."""
    return np.flatnonzero(vocabulary.piece_kinds() != PieceKind.SPECIAL)


def check_top_k(top_k: int, offered: NDArray[np.int64]) -> None:
    """
    Raises:
        ConfigError: there are not so many pieces.
    """
    if not 1 <= top_k <= len(offered):
        raise ConfigError(f"--top-k {top_k} is not between 1 and {len(offered)}, the number of pieces")


def encode_masks(vocabulary: VocabularyTokenizer, text: str, *, longest: int) -> tuple[list[int], list[int]]:
    """Ids of the text with [CLS] and [SEP], and the places of its masks among them.

    Raises:
        DataError: it is longer than the model takes.
    """
    ids = vocabulary.fast().encode(text).ids
    if len(ids) > longest:
        raise DataError(f"the text has {len(ids)} tokens with [CLS] and [SEP], the model takes {longest}; shorten it")
    return ids, [place for place, token_id in enumerate(ids) if token_id == vocabulary.mask_id]
