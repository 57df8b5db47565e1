"""The encoder layer, and the convolution that the first layer of v2 xlarge and xxlarge has beside it.

Shapes: B batch · L length · Lq query rows · D hidden size · K kernel size.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.attention import AttentionBlock, FeedForward, ProjectedKeys, QueryStream
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import HiddenDropout

_ACTIVATIONS = {"gelu": functional.gelu, "tanh": functional.tanh}


class EncoderLayer(nn.Module):
    """Post-LayerNorm transformer layer (paper section 3).

    compiled: what training calls in place of ``run``, see ``compiled_layers.py``.
    """

    def __init__(self, config: ModelConfig, *, convolution: bool = False) -> None:
        super().__init__()
        self.self_attention = AttentionBlock(config)
        self.feed_forward = FeedForward(config)
        self.convolution = ConvolutionBranch(config) if convolution else None
        self.compiled: Callable[[QueryStream, RelativePositions | None], Tensor] | None = None

    def train_with(self, program: Callable[[QueryStream, RelativePositions | None], Tensor]) -> None:
        """Call ``program`` in place of ``run`` where gradients are wanted."""
        self.compiled = program

    def forward(self, carry: Carry) -> Carry:
        run = self.compiled if self.compiled is not None and self.training and torch.is_grad_enabled() else self.run
        hidden = run(QueryStream(carry.field("hidden"), carry.visibility, carry.draws), carry.relative)
        if self.convolution is not None:
            hidden = self.convolution(carry, hidden)
        return replace(carry, hidden=hidden)

    def run(self, query: QueryStream, relative: RelativePositions | None) -> Tensor:
        """The layer without its convolution, of tensors alone: ``[B, L, D]``."""
        attention = self.self_attention.attention
        return self.attend(query, attention.project_keys(query.hidden, relative, query.draws, with_query=True))

    def project_keys(self, carry: Carry) -> ProjectedKeys:
        """See ``DisentangledSelfAttention.project_keys``."""
        return self.self_attention.attention.project_keys(carry.field("hidden"), carry.relative, carry.draws)

    def attend(self, query: QueryStream, keys: ProjectedKeys) -> Tensor:
        """Run the layer for a query stream that may differ from the key stream: ``[B, Lq, D]``."""
        return self.feed_forward(self.self_attention(query, keys), query.draws)


class TokenConvolution(nn.Module):
    """Convolution over tokens, of each document by itself where a sequence holds several."""

    def __init__(self, size: int, kernel_size: int, *, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(size, size, kernel_size, groups=groups)
        self.weight, self.bias = convolution.weight, convolution.bias  # [D, D / groups, K] and [D]
        self.size, self.kernel_size, self.groups = size, kernel_size, groups

    def forward(self, hidden: Tensor, document_starts: Tensor | None) -> Tensor:
        """``[B, L, D]`` -> ``[B, L, D]``."""
        if document_starts is None:
            padding = (self.kernel_size - 1) // 2
            return functional.conv1d(hidden.mT, self.weight, self.bias, padding=padding, groups=self.groups).mT
        half, length = self.kernel_size // 2, hidden.size(1)
        places = torch.arange(length, device=hidden.device)
        windows = []
        for offset in range(-half, half + 1):
            source = (places + offset).clamp(0, length - 1)
            is_own = (document_starts[:, source] == document_starts) & (places + offset == source)
            windows.append(hidden[:, source] * is_own.unsqueeze(-1))
        spread = torch.stack(windows, dim=2).flatten(1, 2)  # K x [B, L, D] -> [B, L * K, D]: a window for each token
        convolved = functional.conv1d(spread.mT, self.weight, self.bias, stride=self.kernel_size, groups=self.groups)
        return convolved.mT

    def extra_repr(self) -> str:
        return f"{self.size}, kernel_size={self.kernel_size}, groups={self.groups}"


class ConvolutionBranch(nn.Module):
    """LayerNorm(layer 0 output + act(conv(embeddings))), zero at padding (microsoft/DeBERTa ``bert.py`` ConvLayer)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.conv = TokenConvolution(size, config.conv_kernel_size, groups=config.conv_groups)
        self.layer_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)
        self.activation = _ACTIVATIONS[config.conv_act]
        # Places that sequence parallelism takes: the branch reads and makes whole sequences.
        self.all_tokens = nn.Identity()
        self.own_tokens = nn.Identity()

    def forward(self, carry: Carry, hidden: Tensor) -> Tensor:
        """``carry.hidden`` is the input of layer 0, ``hidden`` its output; both ``[B, L, D]``."""
        convolved = carry.zero_at_padding(self.conv(self.all_tokens(carry.hidden), carry.document_starts))
        branch = self.activation(self.dropout(convolved, carry.draws))
        return self.own_tokens(carry.zero_at_padding(self.layer_norm(self.all_tokens(hidden) + branch)))
