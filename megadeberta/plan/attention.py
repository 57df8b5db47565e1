"""Which implementation of attention a recipe runs with, as far as memory is concerned."""

from megadeberta.config.run import RunConfig
from megadeberta.layers.kept import Attention

_AUTO_ON_GPU: Attention = "reference"
"""A run takes the kernels where it finds them right and fast, which nobody knows before; the reference needs more."""
_AUTO_ON_CPU: Attention = "cpu"


def attention_of(config: RunConfig, *, on_gpu: bool) -> Attention:
    """The implementation that ``training.attention`` asks for."""
    wanted = config.training.attention
    if wanted == "auto":
        return _AUTO_ON_GPU if on_gpu else _AUTO_ON_CPU
    return wanted
