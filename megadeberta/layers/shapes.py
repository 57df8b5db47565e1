"""Names and shapes of the trained parameters by arithmetic: what plans, dry runs, imports and checkpoints count with.

The same as building the model on torch's meta device (tests/unit/config/test_published_recipes.py), in milliseconds.
"""

import math
from collections.abc import Sequence

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig, part_of
from megadeberta.layers.layer import Layer
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.parameters import Shapes, prefixed


def shapes_of(layers: Sequence[Layer]) -> Shapes:
    """Every parameter of these layers by its global name, in their order. A tied parameter is its owner's alone."""
    shapes: Shapes = {}
    for layer in layers:
        shapes |= prefixed(layer.name, layer.own_parameters())
    return shapes


def parameter_shapes(model: ModelConfig, objective: ObjectiveConfig) -> Shapes:
    """Every parameter that the objective trains."""
    return shapes_of(list_layers(model, objective))


def count_parameters(model: ModelConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Trained parameters of each part of the model: "model", or "generator" and "discriminator" for RTD.

    A table that two parts share counts for the generator.
    """
    counts: dict[str, int] = {}
    for name, shape in parameter_shapes(model, objective).items():
        part = part_of(name) or "model"
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts
