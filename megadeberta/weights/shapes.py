"""The tensors that a model needs, and the one comparison of what a file holds with them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, ObjectiveConfig, RtdConfig
from megadeberta.errors import CheckpointError
from megadeberta.layers.shapes import Shapes, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor


def discriminator_shapes(config: ModelConfig) -> Shapes:
    """Shape of every tensor of a discriminator as a model of its own, with a whole word table."""
    prefix = f"{DISCRIMINATOR}."
    separate_tables = ObjectiveConfig(name="rtd", rtd=RtdConfig(embedding_sharing="nes"))
    shapes = parameter_shapes(config, separate_tables)
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def shapes_of(weights: "Mapping[str, Tensor]") -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    source: str,
    *,
    model: str = "the model configuration",
    remedy: str = "",
) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Args:
        source: the file or folder, for the error.
        model: what the expectation comes from, for the error.
        remedy: what to do about it, at the end of the error.

    Raises:
        CheckpointError: the first name that is missing, unknown or of another shape.
    """
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if not different:
        return
    name = different[0]
    raise CheckpointError(
        f"{source}: {len(different)} of {len(expected)} tensors do not fit {model}, first {name}: "
        f"expected {expected.get(name, 'no such tensor')}, found {found.get(name, 'none')}{remedy}"
    )
