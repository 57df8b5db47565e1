"""Which rule updates a parameter, and what it keeps for it: the plan, the engine and checkpoints ask here."""

import math

from megadeberta.config.run import RunConfig
from megadeberta.config.training import RULES, OptimizerConfig, OptimizerName
from megadeberta.layers.encoder import ENCODER_CUTS
from megadeberta.layers.parameters import Shapes
from megadeberta.layers.shapes import parameter_shapes

_MATRICES = tuple(f".{ending}" for ending in ENCODER_CUTS if ending.endswith(".weight"))


def rule_of(parameter: str, optimizer: OptimizerName) -> OptimizerName:
    """The rule for the parameter of this global name.

    Muon is for matrices inside a network (https://kellerjordan.github.io/posts/muon/): here the linear maps of
    attention and feed-forward. Tables, heads, the convolution and vectors are AdamW's.
    """
    if optimizer == "muon" and not parameter.endswith(_MATRICES):
        return "adamw"
    return optimizer


def is_updated_whole(parameter: str, optimizer: OptimizerName) -> bool:
    """Whether the rule for the parameter has to see all of it."""
    return not RULES[rule_of(parameter, optimizer)].is_elementwise


def checkpoint_bytes(config: RunConfig, parameters: int | None = None) -> int:
    """Of the tensors of one checkpoint of a run: weights and what is kept for them in fp32, each once.

    Args:
        parameters: of the model; None: those that the recipe says.
    """
    shapes = parameter_shapes(config.model, config.objective)
    count = sum(math.prod(shape) for shape in shapes.values()) if parameters is None else parameters
    return round(4 * count * (1 + kept_per_element(shapes, config)))


def kept_per_element(shapes: Shapes, config: RunConfig) -> float:
    """``moments_per_element``, and one more where the run keeps an average of the weights."""
    return moments_per_element(shapes, config.optimizer) + (config.training.ema_decay is not None)


def moments_per_element(shapes: Shapes, config: OptimizerConfig) -> float:
    """Numbers that the optimizer keeps for an element besides its weight, on the mean of these parameters."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(size * len(RULES[rule_of(name, config.name)].moments) for name, size in sizes.items())
    return kept / max(1, sum(sizes.values()))
