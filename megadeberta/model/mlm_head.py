"""The masked-language-modelling head and its loss.

Shapes: B batch · Q masked rows a sample · D hidden size · E embedding width · V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, gather_rows


class TiedDecoder(nn.Module):
    """Projection onto the word table with a bias of its own. The weight is the word table itself (a Tie)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)  # [..., E] -> [..., V]


class MlmHead(nn.Module):
    """Dense, gelu, LayerNorm, tied decoder; then cross entropy in fp32 or better, summed over the masked tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_width)
        self.layer_norm = nn.LayerNorm(config.embedding_width, config.layer_norm_eps)
        self.decoder = TiedDecoder(config)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., V]``."""
        return self.decoder(self.layer_norm(functional.gelu(self.dense(hidden))))

    def forward(self, carry: Carry) -> Carry:
        rows = carry.masked_hidden
        if rows is None:
            rows = gather_rows(carry.hidden, carry.masked_positions)
        labels = carry.masked_labels.flatten()  # [B * Q]
        logits = self.logits(rows.flatten(0, 1))
        if logits.dtype != torch.float64:
            logits = logits.float()
        # A sum, not a mean: it is divided once by the masked count of the whole global batch, so that the gradient
        # does not depend on how the batch is cut into micro batches and ranks.
        loss_sum = functional.cross_entropy(logits, labels, ignore_index=0, reduction="sum")
        with torch.no_grad():
            is_target = labels != 0
            correct = ((logits.argmax(-1) == labels) & is_target).sum()
        return replace(carry, loss_sum=loss_sum, target_count=is_target.sum(), correct_count=correct)
