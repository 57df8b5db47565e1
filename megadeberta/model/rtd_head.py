"""The head of replaced token detection and its loss.

Shapes: B batch · L length · D hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, gather_rows


class RtdHead(nn.Module):
    """Was this token replaced? ``classifier(gelu(dense(LayerNorm(h + h_CLS))))`` for every token.

    As microsoft/DeBERTa ``replaced_token_detection_model.py``. In a sequence of several documents each token takes the
    state of its own document's [CLS].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.all_tokens = nn.Identity()  # an insertion point of sequence parallelism

    def logits(self, hidden: Tensor, document_starts: Tensor | None) -> Tensor:
        """``[B, L, D]`` -> ``[B, L]``; above 0 = replaced."""
        first = hidden[:, :1] if document_starts is None else gather_rows(hidden, document_starts)
        return self.classifier(functional.gelu(self.dense(self.layer_norm(hidden + first)))).squeeze(-1)

    def forward(self, carry: Carry) -> Carry:
        logits = self.logits(self.all_tokens(carry.hidden), carry.document_starts)
        if logits.dtype != torch.float64:
            logits = logits.float()
        real, replaced = carry.attention_mask, carry.field("replaced")
        losses = functional.binary_cross_entropy_with_logits(logits, replaced.to(logits.dtype), reduction="none")
        logits = logits.detach()
        called, tokens = (logits > 0) & real, real.sum()
        found = (called & replaced).sum()
        terms = {
            # [CLS] and [SEP] count, padding does not.
            "rtd_loss": (losses.masked_fill(~real, 0.0).sum(), tokens),
            "rtd_accuracy": (((called == replaced) & real).sum(), tokens),
            "rtd_precision": (found, called.sum()),
            "rtd_recall": (found, (replaced & real).sum()),
        }
        return replace(carry, terms={**carry.terms, **terms})
