"""Samples from the generator: Gumbel-max with noise addressed by (site, sample, position, vocabulary id).

Nothing is drawn from a stream, so the samples depend on no layout, and a resumed run draws them again.

Shapes: B batch · L length · Q masked rows a sample · M rows that the head computed · V vocabulary.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.model.carry import Carry, Term
from megadeberta.model.dropout import needed
from megadeberta.model.mlm_head import EMPTY, computed_slots
from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.gumbel_max import gumbel_max


class Sample(nn.Module):
    """Replaces every masked token by a draw from the generator, and hands the sequence on to the discriminator.

    One draw per masked position from ``softmax(logits / temperature)`` over the whole vocabulary, special tokens
    included; no gradient passes. A draw that equals the original counts as original.
    As microsoft/DeBERTa ``rtd_task.py``.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.site = 0
        self.implementation = AUTO  # a name of ``ops.logits.IMPLEMENTATIONS``
        self.draw = gumbel_max  # an insertion point of tensor parallelism

    @torch.no_grad()
    def forward(self, carry: Carry) -> Carry:
        positions, labels = carry.field("masked_positions"), carry.field("masked_labels")
        is_target = labels != EMPTY
        keys = needed(carry.draws).rows.gather(1, positions) ^ self.site  # [B, Q]
        drawn = self._drawn(carry.field("masked_logits"), keys.flatten(), labels)
        length = carry.input_ids.size(1)
        target = torch.where(is_target, positions, length)  # empty slots write behind the end
        input_ids = functional.pad(carry.input_ids, (0, 1)).scatter(1, target, drawn)[:, :length]
        is_replaced = is_target & (drawn != labels)
        replaced = torch.zeros_like(functional.pad(carry.attention_mask, (0, 1))).scatter(1, target, is_replaced)[
            :, :length
        ]
        shown = carry.input_ids.gather(1, positions)
        tokens = carry.attention_mask.sum()
        rates = {
            "masked_rate": ((is_target & (shown != labels)).sum(), tokens),
            "sampled_rate": (is_target.sum(), tokens),
            "replaced_rate": (is_replaced.sum(), tokens),
        }
        return after_sampling(carry, input_ids=input_ids, replaced=replaced, rates=rates)

    def _drawn(self, logits: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """``[B, Q]``, 0 in slots that the head did not compute.

        Args:
            logits: ``[M, V]`` of the head.
            keys: ``[B Q]``.
            labels: ``[B, Q]``.
        """
        options: dict[str, Any] = {"temperature": self.temperature, "implementation": self.implementation}
        computed = computed_slots(labels.flatten())
        if computed is None:
            return self.draw(logits, keys, **options).view_as(labels)
        drawn = self.draw(logits, keys[computed], **options)
        return torch.zeros_like(keys).index_copy_(0, computed, drawn).view_as(labels)


def after_sampling(carry: Carry, *, input_ids: Tensor, replaced: Tensor, rates: dict[str, Term]) -> Carry:
    """The carry as the discriminator starts: the sampled sequence, and nothing that the generator computed."""
    return replace(
        carry,
        input_ids=input_ids,
        replaced=replaced,
        masked_positions=None,
        masked_labels=None,
        masked_hidden=None,
        masked_logits=None,
        tied_gradient=None,
        relative=None,
        hidden=None,
        terms={**carry.terms, **rates},
    )
