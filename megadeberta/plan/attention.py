"""Which implementation of attention a recipe runs with, as far as memory is concerned."""

from megadeberta.config.run import RunConfig

_AUTO_ON_GPU: str = "reference"
"""A run takes the kernels where it finds them right and fast, which nobody knows before; the reference needs more."""
_AUTO_ON_CPU: str = "cpu"


def attention_of(config: RunConfig, *, on_gpu: bool) -> str:
    """The implementation that ``training.attention`` asks for."""
    wanted = config.training.attention
    if wanted == "auto":
        return _AUTO_ON_GPU if on_gpu else _AUTO_ON_CPU
    return wanted
