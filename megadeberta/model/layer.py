"""The encoder layer, and the convolution that the first layer of v2 xlarge and xxlarge has beside it.

Shapes: B batch · L length · Lq query rows · D hidden size.
"""

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.attention import AttentionBlock, FeedForward, ProjectedKeys
from megadeberta.model.carry import Carry
from megadeberta.ops.attention_mask import AttentionMask

_ACTIVATIONS = {"gelu": functional.gelu, "tanh": functional.tanh}


class EncoderLayer(nn.Module):
    """Post-LayerNorm transformer layer (paper section 3)."""

    def __init__(self, config: ModelConfig, *, convolution: bool = False) -> None:
        super().__init__()
        self.self_attention = AttentionBlock(config)
        self.feed_forward = FeedForward(config)
        self.convolution = ConvolutionBranch(config) if convolution else None

    def forward(self, carry: Carry) -> Carry:
        hidden = self.attend(carry.hidden, self.project_keys(carry), carry.visibility)
        if self.convolution is not None:
            hidden = self.convolution(carry.hidden, hidden, carry.attention_mask)
        return replace(carry, hidden=hidden)

    def project_keys(self, carry: Carry) -> ProjectedKeys:
        return self.self_attention.attention.project_keys(carry.hidden, carry.relative)

    def attend(
        self, query: Tensor, keys: ProjectedKeys, mask: AttentionMask, positions: Tensor | None = None
    ) -> Tensor:
        """Run the layer for a query stream ``[B, Lq, D]`` that may differ from the key stream, at ``[B, Lq]``."""
        return self.feed_forward(self.self_attention(query, keys, mask, positions))


class ConvolutionBranch(nn.Module):
    """LayerNorm(layer 0 output + act(conv(embeddings))), zero at padding (microsoft/DeBERTa ``bert.py`` ConvLayer)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.conv_kernel_size
        self.conv = nn.Conv1d(size, size, kernel, padding=(kernel - 1) // 2, groups=config.conv_groups)
        self.layer_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = _ACTIVATIONS[config.conv_act]

    def forward(self, embedded: Tensor, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask.unsqueeze(-1)
        convolved = self.conv(embedded.mT).mT * real  # [B, L, D]
        return self.layer_norm(hidden + self.activation(self.dropout(convolved))) * real
