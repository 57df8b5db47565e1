"""Names and shapes of the parameters of the building blocks that layers are made of."""

Shapes = dict[str, tuple[int, ...]]
"""Shape of every parameter by its name, in order."""


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Shapes:
    """A linear layer: weight ``[outputs, inputs]`` and bias ``[outputs]``."""
    weight: Shapes = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def layer_norm(name: str, size: int) -> Shapes:
    """A LayerNorm: weight and bias ``[size]``."""
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    """The same parameters as those of a module that is called ``prefix``."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}
