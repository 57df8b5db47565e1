"""Initial weights from a folder that `megadeberta convert import` wrote."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from torch import nn

from megadeberta.weights.fit import check_fits
from megadeberta.weights.safetensors_file import SAFETENSORS

_BLOCK = 4 << 20
"""Elements read at a time."""


def initial_values(
    shapes: Mapping[str, Sequence[int]], folder: Path, *, tokenizer: Path | None = None
) -> Callable[[str, nn.Parameter], None]:
    """A function that fills each parameter of a model from ``folder/model.safetensors``, as `megadeberta convert
    import` writes it. A parameter with a ``shard`` gets that slice, and no more is read.

    Some rows are read at a time, and the host holds no more than these. That the values are finite was checked before
    the start, without torch (``hub.check_start``).

    Args:
        shapes: of all parameters of the recipe's model, whole, by name; a pipeline stage fills only its own.
        tokenizer: of the training data; must be the folder's own where it has one.

    Raises:
        CheckpointError: the file is missing or unreadable, its names or shapes are not exactly the
            model's, or the weights are for another vocabulary.
    """
    check_fits(folder, {name: tuple(shape) for name, shape in shapes.items()}, tokenizer=tokenizer)
    weights = safetensors.safe_open(folder / SAFETENSORS, framework="pt")

    @torch.no_grad()
    def fill(name: str, parameter: nn.Parameter) -> None:
        whole, shard = weights.get_slice(name), getattr(parameter, "shard", None)
        first, columns = 0, tuple[slice, ...]()
        if shard is not None:
            first = shard.start if shard.dim == 0 else 0
            columns = (slice(shard.start, shard.stop),) if shard.dim == 1 else ()
        for rows in _row_blocks(first, first + parameter.size(0), whole.get_shape()):
            parameter[rows.start - first : rows.stop - first].copy_(whole[(rows, *columns)])

    return fill


def _row_blocks(start: int, stop: int, shape: Sequence[int]) -> Iterator[slice]:
    """The rows from ``start`` to ``stop`` of a tensor, ``_BLOCK`` of its elements at a time."""
    together = max(1, _BLOCK // math.prod(shape[1:]))
    return (slice(first, min(stop, first + together)) for first in range(start, stop, together))
