"""Weights for longer sequences than they were trained on; on those they were trained on they compute what they did.

Shapes: T trained length · L new length · P rows of the relative table · D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.relative import RelativeTable
from megadeberta.ops.attention.distance_rows import table_row

POSITIONS = "position_embeddings."
"""In the name of every table of absolute positions, differences from another part's included."""


def lengthen(
    weights: dict[str, Tensor], config: ModelConfig, objective: ObjectiveConfig, *, trained: int, length: int
) -> dict[str, str]:
    """Give tables the rows that sequences of ``length`` read and none of ``trained`` tokens did, in place.

    Returns:
        What became of each table that changed.
    """
    notes = {}
    rows = max(length, config.max_position_embeddings)
    for name in [name for name in weights if POSITIONS in name]:
        weights[name] = repeat_positions(weights[name], trained=trained, rows=rows)
        notes[name] = f"rows {trained} to {rows - 1} repeat rows 1 to {trained - 2}"
    tables = [layer.name for layer in list_layers(config, objective) if isinstance(layer, RelativeTable)]
    for name in [f"{table}.embedding.weight" for table in tables]:
        sources = trained_rows(config, trained)
        weights[name] = weights[name][sources].clone()
        copied = [row for row, source in enumerate(sources) if row != source]
        if copied:
            notes[name] = f"{len(copied)} rows that no sequence of {trained} tokens reads are the nearest that one does"
    return notes


def repeat_positions(table: Tensor, *, trained: int, rows: int) -> Tensor:
    """``[T or more, D]`` -> ``[rows, D]``: the trained rows, then again and again those between [CLS] and [SEP].

    A window of the new length looks as if each ``trained - 2`` tokens were a sequence of their own, which the model has
    met (Beltagy et al. 2020, Longformer, section 5, copy in the same way).
    """
    places = torch.arange(rows)
    repeated = 1 + (places - 1) % (trained - 2)
    return table[torch.where(places < trained, places, repeated)].clone()


def trained_rows(config: ModelConfig, trained: int) -> Sequence[int]:
    """For each of the P rows the one whose values it takes: itself, or beyond all that were read the last that was."""
    buckets, span = config.position_buckets, config.relative_span
    first, last = (table_row(d, num_buckets=buckets, max_distance=span) for d in (1 - trained, trained - 1))
    return [min(max(row, first), last) for row in range(2 * config.relative_half_width)]
