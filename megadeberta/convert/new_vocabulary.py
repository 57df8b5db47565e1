"""Weights for another vocabulary: rows of equal pieces are taken over, the others are drawn.

The tensors with a row per token are the word tables, a discriminator's difference from its generator's, and the bias of
the prediction head. Everything else stays.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.check import vocabulary_size
from megadeberta.data.tokenizer import PAD_ID, PieceKind, VocabularyTokenizer, load_tokenizer
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.initialize import fill_parameter

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


def onto_vocabulary(
    weights: Mapping[str, Tensor], config: ModelConfig, objective: ObjectiveConfig, *, old: Path, new: Path, seed: int
) -> tuple[Weights, ModelConfig, dict[str, str]]:
    """The weights and their configuration for the vocabulary ``new``, whose size is rounded up as ``auto`` does.

    Args:
        old: the tokenizer that the weights are for.
        seed: of the rows that are drawn: those that a new run of this seed has there.

    Returns:
        weights, configuration, and by the name of every tensor that changed what became of its rows.

    Raises:
        CheckpointError: the old tokenizer is not there.
        DataError: one of the two cannot be read.
    """
    if not old.is_file():
        raise CheckpointError(
            f"--tokenizer {new}: needs the vocabulary that the weights are for as well, to find equal pieces; put it "
            f"into {old.parent}"
        )
    size = vocabulary_size(new)
    sources = equal_pieces(load_tokenizer(old), load_tokenizer(new))
    # Tokens that were added to a tokenizer alone have no rows yet.
    sources = [source if source is not None and source < config.vocab_size else None for source in sources]
    taken = sum(source is not None for source in sources)
    said = f"{taken} of {len(sources)} rows are those of equal pieces, {len(sources) - taken} drawn from seed {seed}"
    log.warning("new vocabulary: %s; its untrained pieces need training", said)
    found, names = dict(weights), _names_with_rows(config, objective)
    for name in names:
        found[name] = _moved(name, weights[name], sources, size, seed=seed, std=config.initializer_range)
    return found, config.model_copy(update={"vocab_size": size}), dict.fromkeys(names, said)


def equal_pieces(old: VocabularyTokenizer, new: VocabularyTokenizer) -> list[int | None]:
    """For every id of ``new`` the id of ``old`` with the same piece, None without one; special tokens by role."""
    ids = {piece: token_id for token_id, piece in _ordinary(old).items()}
    roles = ("cls_id", "sep_id", "unk_id", "mask_id")
    special = {PAD_ID: PAD_ID} | {getattr(new, role): getattr(old, role) for role in roles}
    ordinary = _ordinary(new)
    return [special.get(i, ids.get(ordinary[i]) if i in ordinary else None) for i in range(new.vocab_size_needed)]


def _ordinary(tokenizer: VocabularyTokenizer) -> dict[int, str]:
    kinds = tokenizer.piece_kinds()
    return {i: tokenizer.piece(i) for i in range(tokenizer.vocab_size_needed) if kinds[i] != PieceKind.SPECIAL}


def _names_with_rows(config: ModelConfig, objective: ObjectiveConfig) -> list[str]:
    """The tensors whose shape depends on the size of the vocabulary."""
    shapes = parameter_shapes(config, objective)
    larger = parameter_shapes(config.model_copy(update={"vocab_size": config.vocab_size + 1}), objective)
    return [name for name in shapes if shapes[name] != larger[name]]


@torch.no_grad()
def _moved(name: str, old: Tensor, sources: list[int | None], size: int, *, seed: int, std: float) -> Tensor:
    """A tensor of ``size`` rows: those of equal pieces, and what a new run starts with elsewhere."""
    parameter = nn.Parameter(old.new_empty(size, *old.shape[1:]))
    fill_parameter(name, parameter, seed=seed, std=std)
    new = parameter.detach()
    pairs = [(row, source) for row, source in enumerate(sources) if source is not None]
    rows, origins = (torch.tensor(part) for part in zip(*pairs, strict=True))
    new[rows] = old[origins]
    return new
