"""The head that predicts tokens, masked ones or next ones, and its loss.

Shapes: B batch · Q target rows a sample · D hidden size · E embedding width · V vocabulary.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, gather_rows
from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.masked_cross_entropy import TokenLoss, masked_cross_entropy
from megadeberta.ops.tied_table import TiedGradient

EMPTY = 0
"""The label of a slot without a target."""


class TiedDecoder(nn.Module):
    """Projection onto the word table with a bias of its own. The weight is the word table itself (a Tie)."""

    weight: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor | TokenLoss:
        """Logits ``[..., V]``; with labels ``[M]`` for ``hidden`` ``[M, E]``, the loss, see ``decoder_loss``."""
        if labels is None:
            return functional.linear(hidden, self.weight, self.bias)
        return decoder_loss(self.weight, self.bias, hidden, labels, **options)


def decoder_loss(
    weight: Tensor, bias: Tensor, hidden: Tensor, labels: Tensor, *, tied: TiedGradient | None, **options: Any
) -> TokenLoss:
    """``masked_cross_entropy`` of a decoder whose ``weight`` may be the table of ``tied``."""
    tied = None if tied is None else tied.of(weight)
    return masked_cross_entropy(hidden, weight, bias, labels, tied=tied, **options)


class MlmHead(nn.Module):
    """Dense, gelu, LayerNorm, tied decoder; then cross entropy in fp32 or better, summed over the targets."""

    def __init__(self, config: ModelConfig, *, for_sampling: bool = False) -> None:
        """With ``for_sampling``, the logits are handed on: samples are drawn from them."""
        super().__init__()
        self.for_sampling = for_sampling
        self.implementation = AUTO  # a name of ``ops.logits.IMPLEMENTATIONS``
        self.dense = nn.Linear(config.hidden_size, config.embedding_width)
        self.layer_norm = nn.LayerNorm(config.embedding_width, config.layer_norm_eps)
        self.decoder: nn.Module = TiedDecoder(config)
        self.all_tokens = nn.Identity()  # an insertion point of sequence parallelism

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., V]``."""
        return self.decoder(self.transform(hidden))

    def transform(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., E]``: what the decoder reads."""
        return self.layer_norm(functional.gelu(self.dense(hidden)))

    def forward(self, carry: Carry) -> Carry:
        rows = carry.masked_hidden
        if rows is None:
            rows = gather_rows(self.all_tokens(carry.hidden), carry.field("masked_positions"))
        # Sums, not means: each is divided once by its count over the whole global batch, so that the gradient does not
        # depend on how the batch is cut into micro batches and ranks.
        terms, logits = dict(carry.terms), None
        for name, labels in self._targets(carry).items():
            loss_sum, hits, logits = self._loss(rows.flatten(0, 1), labels.flatten(), carry.tied_gradient)
            count = (labels != EMPTY).sum()
            terms |= {f"{name}_loss": (loss_sum, count), f"{name}_accuracy": (hits, count)}
        return replace(carry, masked_logits=logits, terms=terms)

    def _loss(self, rows: Tensor, labels: Tensor, tied: TiedGradient | None) -> TokenLoss:
        """Of ``[M, D]`` with labels ``[M]``."""
        computed = computed_slots(labels)
        if computed is not None:
            rows, labels = rows.index_select(0, computed), labels.index_select(0, computed)
        options = {"tied": tied, "implementation": self.implementation, "keep_logits": self.for_sampling}
        return self.decoder(self.transform(rows), labels, **options)

    def _targets(self, carry: Carry) -> dict[str, Tensor]:
        """Labels ``[B, Q]`` of masked tokens, and of next tokens where the batch has sequences read left to right."""
        labels = carry.field("masked_labels")
        if carry.prefix_lengths is None or self.for_sampling:  # a generator fills what is masked, nothing else
            return {"mlm": labels}
        whole = (carry.prefix_lengths >= carry.input_ids.size(1)).unsqueeze(-1)  # [B, 1]
        return {"mlm": labels.masked_fill(~whole, EMPTY), "ar": labels.masked_fill(whole, EMPTY)}


def computed_slots(labels: Tensor) -> Tensor | None:
    """Which slots of ``labels`` ``[M]`` the decoder computes: those with a target on a CPU, where empty ones cost as
    much; None, all of them, elsewhere: finding them would make the host wait for the device."""
    return labels.nonzero().squeeze(1) if labels.device.type == "cpu" else None
