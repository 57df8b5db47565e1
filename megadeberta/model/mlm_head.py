"""The masked-language-modelling head and its loss.

Shapes: B batch · Q masked rows a sample · D hidden size · E embedding width · V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, gather_rows
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.tied_table import TiedGradient


class TiedDecoder(nn.Module):
    """Projection onto the word table with a bias of its own. The weight is the word table itself (a Tie)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, tied: TiedGradient | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits ``[..., V]``; with labels ``[M]`` for ``hidden`` ``[M, E]``, the loss sum and the number of hits."""
        if labels is None:
            return functional.linear(hidden, self.weight, self.bias)
        tied = None if tied is None else tied.of(self.weight)
        return masked_cross_entropy(hidden, self.weight, self.bias, labels, tied=tied)


class MlmHead(nn.Module):
    """Dense, gelu, LayerNorm, tied decoder; then cross entropy in fp32 or better, summed over the masked tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_width)
        self.layer_norm = nn.LayerNorm(config.embedding_width, config.layer_norm_eps)
        self.decoder = TiedDecoder(config)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., V]``."""
        return self.decoder(self.transform(hidden))

    def transform(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., E]``: what the decoder reads."""
        return self.layer_norm(functional.gelu(self.dense(hidden)))

    def forward(self, carry: Carry) -> Carry:
        rows = carry.masked_hidden
        if rows is None:
            rows = gather_rows(carry.hidden, carry.masked_positions)
        rows, labels = rows.flatten(0, 1), carry.masked_labels.flatten()  # [B * Q, D], [B * Q]
        target_count = (labels != 0).sum()
        if not rows.is_cuda:
            # Empty slots cost as much as others. On a GPU finding them would make the host wait for the device.
            filled = labels.nonzero().squeeze(1)
            rows, labels = rows.index_select(0, filled), labels.index_select(0, filled)
        # A sum, not a mean: it is divided once by the masked count of the whole global batch, so that the gradient
        # does not depend on how the batch is cut into micro batches and ranks.
        loss_sum, correct = self.decoder(self.transform(rows), labels, carry.tied_gradient)
        return replace(carry, loss_sum=loss_sum, target_count=target_count, correct_count=correct)
