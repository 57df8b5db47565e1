"""The fields of a batch: names, shapes, which of them an objective or a packing needs, padding, and the blank batch.

Loader, model, pipeline, steps and evaluation read this table. Shapes: B sequences · L length · Q target slots.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.config.data import DataConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.objectives import objective_of

Batch = dict[str, Tensor]
"""Fields by name, all int64 and on one device. 0 is padding in each of them: [PAD], no token, an empty slot."""

ATTENTION_MASK = "attention_mask"
"""A batch may lack it: then every token is real. See ``without_full_masks``."""

SAMPLE_NUMBERS = "sample_numbers"
"""Not a field of ``Carry``: dropout and sampling are functions of it, see ``model.dropout.Draws``."""


@dataclass(frozen=True)
class Field:
    """One tensor of a batch."""

    name: str
    axis: Literal["token", "slot", "sample"]
    """Its shape: ``[B, L]``, ``[B, Q]`` or ``[B]``."""
    is_mask: bool = False
    """The model reads it as bool."""
    from_targets: bool = False
    """Made with the targets (``data/targets.py``) and sent by the worker; the others follow from those."""
    limits_attention: bool = False
    """One of the rules on which pairs may attend."""


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("input_ids", "token", from_targets=True),
        Field(ATTENTION_MASK, "token", is_mask=True),  # 1 = real token
        Field("masked_positions", "slot", from_targets=True),  # 0 in empty slots
        Field("masked_labels", "slot", from_targets=True),  # ids to predict, 0 = empty slot
        Field(SAMPLE_NUMBERS, "sample"),  # step * 2**32 + place in the global batch
        # Key j is seen from i if j <= i or j < prefix: 0 = causal, L = all.
        Field("prefix_lengths", "sample", from_targets=True, limits_attention=True),
        Field("document_starts", "token", limits_attention=True),  # of each token's own document
        Field("replaced", "token", is_mask=True),  # 1 = a sample that is not the original token
    )
}
"""By name, in the order in which they travel. Register others with ``register_field``."""

_ALWAYS = ("input_ids", ATTENTION_MASK, "masked_positions", "masked_labels", SAMPLE_NUMBERS)


def register_field(field: Field) -> None:
    """Add a field; a module of ``plugins`` calls it for an objective of its own. It arrives in ``Carry.more``.

    Raises:
        ConfigError: another field has the name.
    """
    if FIELDS.setdefault(field.name, field) != field:
        raise ConfigError(f"batch field {field.name!r} is registered twice with different settings")


def batch_fields(data: DataConfig, objective: ObjectiveConfig) -> tuple[str, ...]:
    """Names of the tensors of every batch that these sections make, in order."""
    packing = ("document_starts",) if data.packing == "documents" else ()
    return (*_ALWAYS, *objective_of(objective).batch_fields, *packing)


def blank_batch(fields: Iterable[str], *, length: int, device: torch.device | str = "cpu") -> Batch:
    """One sequence of padding with one empty slot: takes part in collectives and adds nothing to any term."""
    shapes = {"token": (1, length), "slot": (1, 1), "sample": (1,)}
    return {name: torch.zeros(shapes[FIELDS[name].axis], dtype=torch.int64, device=device) for name in fields}


def equal_shapes(batches: Sequence[Batch]) -> list[Batch]:
    """The batches padded to the most sequences and the most slots of any."""
    if not batches:
        return []
    sizes = {
        name: [max(size) for size in zip(*(batch[name].shape for batch in batches), strict=True)] for name in batches[0]
    }
    return [{name: _padded(tensor, sizes[name]) for name, tensor in batch.items()} for batch in batches]


def without_full_masks(batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches of a step without their masks, where no token of any is padding and no other rule limits attention:
    attention then runs without a mask. All of them or none, so that a pipeline passes as many tensors for each.

    Args:
        batches: on the host, as their values are read; a device's tensors have no ``numpy``.
    """
    shapes = {batch["input_ids"].shape for batch in batches}  # of several, equal_shapes would pad some
    if len(shapes) != 1 or any(attention_rules(batch) or not batch[ATTENTION_MASK].numpy().all() for batch in batches):
        return batches
    return [{name: tensor for name, tensor in batch.items() if name != ATTENTION_MASK} for batch in batches]


def fields_given(fields: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of ``count`` tensors of a batch, which are all of ``fields`` or all but its mask."""
    return tuple(fields) if count == len(fields) else tuple(name for name in fields if name != ATTENTION_MASK)


def as_read(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields as the model reads them: masks as bool."""
    return {name: tensor.bool() if FIELDS[name].is_mask else tensor for name, tensor in batch.items()}


def attention_rules(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields that limit which pairs may attend, besides ``attention_mask``."""
    return {name: tensor for name, tensor in batch.items() if FIELDS[name].limits_attention}


def _padded(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    margins = [(0, wanted - found) for wanted, found in zip(sizes, tensor.shape, strict=True)]
    return functional.pad(tensor, [side for margin in reversed(margins) for side in margin])
