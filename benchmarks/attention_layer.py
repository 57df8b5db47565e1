"""One attention layer with its projections and LayerNorm, as transformers and as we have it, for timing.

Shapes: B batch · L length · D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.model.attention import QueryStream
from megadeberta.model.carry import RelativePositions
from megadeberta.model.dropout import Draws
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.relative_position import rows_by_distance


@dataclass(frozen=True)
class LayerInputs:
    """Random inputs of the layer, and the gradient of its output."""

    config: ModelConfig
    hidden: Tensor  # [B, L, D]
    table: Tensor  # [2 k, D]
    upstream: Tensor  # [B, L, D]

    @property
    def batch(self) -> int:
        return self.hidden.size(0)

    @property
    def length(self) -> int:
        return self.hidden.size(1)

    def useful_flops(self) -> float:
        """Forward and backward: four projections, two content products, and two with the used table rows."""
        size, relative = self.config.hidden_size, self.config.relative_attention
        rows = min(2 * self.length - 1, 2 * self.config.relative_half_width) if relative else 0
        return 6.0 * self.batch * self.length * size * (4 * size + 2 * self.length + 2 * rows)


def draw_inputs(config: ModelConfig, shape: tuple[int, int], like: Tensor) -> LayerInputs:
    """On the device and in the type of ``like``."""
    size = config.hidden_size
    options = {"dtype": like.dtype, "device": like.device}
    hidden, upstream = torch.randn(*shape, size, **options), torch.randn(*shape, size, **options)
    table = torch.randn(2 * config.relative_half_width, size, **options)
    return LayerInputs(config, hidden.requires_grad_(), table.requires_grad_(), upstream)


def their_layer(model: nn.Module, inputs: LayerInputs) -> Callable[[], Tensor]:
    """Forward of the first attention layer of a DebertaV2ForMaskedLM, of either package's too."""
    encoder = model.deberta.encoder
    attention = encoder.layer[0].attention
    hidden = inputs.hidden
    # Once a step and not once a layer, so neither is timed.
    mask = encoder.get_attention_mask(torch.ones(*hidden.shape[:2], device=hidden.device))
    distances = encoder.get_rel_pos(hidden)
    return lambda: attention(hidden, mask, relative_pos=distances, rel_embeddings=inputs.table)[0]


def our_layer(model: nn.Module, inputs: LayerInputs) -> Callable[[], Tensor]:
    """Forward of the first attention layer of our model."""
    config, hidden = inputs.config, inputs.hidden
    block = model.get_submodule("layer.0.self_attention")
    mask = padding_mask(torch.ones(*hidden.shape[:2], dtype=torch.bool, device=hidden.device))
    draws = Draws.of(torch.arange(inputs.batch, device=hidden.device), inputs.length)
    rows = rows_by_distance(inputs.length, config.position_buckets, config.relative_span).to(hidden.device)
    first, last = int(rows[0]), int(rows[-1])

    def forward() -> Tensor:
        relative = None
        if config.relative_attention:
            relative = RelativePositions(inputs.table[first : last + 1], rows - first)
        return block(QueryStream(hidden, mask, draws), block.attention.project_keys(hidden, relative, draws))

    return forward


def with_backward(forward: Callable[[], Tensor], model: nn.Module, inputs: LayerInputs) -> Callable[[], list[Tensor]]:
    """Gradients of hidden states, table and all parameters that the layer has."""
    ours = "layer.0.self_attention"
    block = model.get_submodule(ours) if hasattr(model, "layer") else model.deberta.encoder.layer[0].attention
    wanted = [inputs.hidden, *([inputs.table] if inputs.config.relative_attention else []), *block.parameters()]
    return lambda: list(torch.autograd.grad(forward(), wanted, inputs.upstream))
