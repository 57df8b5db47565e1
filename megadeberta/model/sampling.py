"""Samples from the generator: Gumbel-max with noise addressed by (site, sample, position, vocabulary id).

Nothing is drawn from a stream, so the samples depend on no layout, and a resumed run draws them again.

Shapes: B batch · L length · Q masked rows a sample · V vocabulary · R rows.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.model.carry import Carry, Term
from megadeberta.model.dropout import needed
from megadeberta.model.mlm_head import EMPTY
from megadeberta.ops.split_mix import hash_words, shift_right

_CHUNK_ELEMENTS = 2**22
"""Noise of this many (row, id) pairs exists at a time: 32 MiB for each of the hash's few temporaries."""


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
        self.draw = gumbel_max  # an insertion point of tensor parallelism

    @torch.no_grad()
    def forward(self, carry: Carry) -> Carry:
        positions, labels = carry.field("masked_positions"), carry.field("masked_labels")
        is_target = labels != EMPTY
        keys = needed(carry.draws).rows.gather(1, positions) ^ self.site  # [B, Q]
        drawn = self.draw(carry.field("masked_logits") / self.temperature, keys)
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


def gumbel_max(logits: Tensor, keys: Tensor) -> Tensor:
    """One id for each row, drawn from its softmax: ``argmax(logits + Gumbel noise)``.

    Args:
        logits: ``[..., V]``.
        keys: int64 ``[...]``; the same key and logits give the same id.
    """
    return best_ids(logits, keys)[1]


def best_ids(logits: Tensor, keys: Tensor, *, first_id: int = 0) -> tuple[Tensor, Tensor]:
    """Largest ``logits + Gumbel noise`` of each row and its id, both ``[...]``.

    Args:
        logits: ``[..., V]``, of the ids from ``first_id`` on.
        keys: int64 ``[...]``.
    """
    vocabulary = logits.size(-1)
    ids = torch.arange(first_id, first_id + vocabulary, device=logits.device)
    rows = logits.reshape(-1, vocabulary)
    size = max(1, _CHUNK_ELEMENTS // vocabulary)
    best = [
        # -log of an exponential variable is a Gumbel variable.
        (chunk - torch.log(exponential(hash_words(chunk_keys.unsqueeze(-1), ids)))).max(-1)
        for chunk, chunk_keys in zip(rows.split(size), keys.reshape(-1).split(size), strict=True)
    ]
    values, places = (torch.cat(parts).view(keys.shape) for parts in zip(*best, strict=True))
    return values, places + first_id


def exponential(words: Tensor) -> Tensor:
    """Standard exponential variables, fp32, from uniform words.

    ``-log1p(-u)`` keeps all digits where u is small, and the smallest of V variables decides a draw.
    """
    uniform = (shift_right(words, 11).float() + 0.5) * 2.0**-53  # in (0, 1]
    return -torch.log1p(-uniform.clamp_max(1.0 - 2.0**-24))
