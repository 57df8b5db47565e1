"""The head that predicts tokens, masked ones or next ones, and its loss.

Shapes: B batch · Q target rows a sample · D hidden size · E embedding width · V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, Term, gather_rows

EMPTY = 0
"""The label of a slot without a target."""


class TiedDecoder(nn.Module):
    """Projection onto the word table with a bias of its own. The weight is the word table itself (a Tie)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)  # [..., E] -> [..., V]


class MlmHead(nn.Module):
    """Dense, gelu, LayerNorm, tied decoder; then cross entropy in fp32 or better, summed over the targets."""

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
        labels = carry.masked_labels  # [B, Q]
        logits = self.logits(rows)  # [B, Q, V]
        if logits.dtype != torch.float64:
            logits = logits.float()
        # Sums, not means: each is divided once by its count over the whole global batch, so that the gradient does not
        # depend on how the batch is cut into micro batches and ranks.
        losses = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=EMPTY, reduction="none"
        ).view(labels.shape)
        logits = logits.detach()
        correct = logits.argmax(-1) == labels
        return replace(carry, masked_logits=logits, terms={**carry.terms, **_terms(carry, losses, correct)})


def _terms(carry: Carry, losses: Tensor, correct: Tensor) -> dict[str, Term]:
    """Loss and accuracy of masked tokens, and of next tokens where the batch has sequences read left to right."""
    is_target = carry.masked_labels != EMPTY
    if carry.prefix_lengths is None:
        return _loss_and_accuracy("mlm", losses, correct, is_target)
    whole = (carry.prefix_lengths >= carry.input_ids.size(1)).unsqueeze(-1)  # [B, 1]
    return {
        **_loss_and_accuracy("mlm", losses, correct, is_target & whole),
        **_loss_and_accuracy("ar", losses, correct, is_target & ~whole),
    }


def _loss_and_accuracy(name: str, losses: Tensor, correct: Tensor, chosen: Tensor) -> dict[str, Term]:
    count = chosen.sum()
    return {
        f"{name}_loss": (losses.masked_fill(~chosen, 0.0).sum(), count),
        f"{name}_accuracy": ((correct & chosen).sum(), count),
    }
