"""Which implementation of attention a recipe runs with, as far as memory is concerned."""

from megadeberta.config.run import RunConfig
from megadeberta.plan.activations import Attention

AUTO_ON_GPU: Attention = "reference"
AUTO_ON_CPU: Attention = "cpu"
"""What "auto" means there (``ops/disentangled_attention.py`` ``resolve_backend``, which needs torch)."""


def attention_of(config: RunConfig, *, on_gpu: bool) -> Attention:
    """The implementation that ``training.attention`` asks for."""
    wanted = config.training.attention
    if wanted == "auto":
        return AUTO_ON_GPU if on_gpu else AUTO_ON_CPU
    return wanted
