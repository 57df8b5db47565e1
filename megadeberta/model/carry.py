"""What flows from layer to layer.

Shapes: B batch · L length · Q target rows a sample · M slots that a head computes · D hidden size
P rows of the windowed relative table · V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megadeberta.batch import ATTENTION_MASK, SAMPLE_NUMBERS, as_read
from megadeberta.model.dropout import Draws
from megadeberta.ops.attention.mask import AttentionMask, padding_mask, prefix_mask
from megadeberta.ops.tied_table import TiedGradient

Term = tuple[Tensor, Tensor]
"""(sum, count) of one named quantity over a micro batch; two scalars. Its mean is the ratio over the global batch."""


@dataclass(frozen=True)
class RelativePositions:
    """The table rows that distances below L can reach, and which row each distance reads.

    table: ``[P, D]``, after its LayerNorm. rows: int32 ``[2L - 1]`` for the distances ``-(L-1) .. L-1``.
    """

    table: Tensor
    rows: Tensor


class _LastMask:
    """The mask that was made last, and of what: all layers of a pass ask for the same one."""

    def __init__(self) -> None:
        self._known: tuple[tuple[Tensor | None, ...], AttentionMask] | None = None

    def of(self, real: Tensor, *rules: Tensor | None) -> AttentionMask:
        """See ``Carry.visibility``; ``rules`` are the other fields that limit attention."""
        sources = (real, *rules)
        if self._known is None or any(a is not b for a, b in zip(self._known[0], sources, strict=True)):
            self._known = sources, _mask_of(real, *rules)
        return self._known[1]


@dataclass(frozen=True)
class Carry:
    """One micro batch on its way through the layers; each layer returns a copy with its own fields replaced.

    ``attention_mask`` says which tokens are real; embeddings, convolution and heads use it. Which pairs may attend is
    that and, where given, ``prefix_lengths``, ``document_starts`` and ``pairs`` together.
    """

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] bool, true = real token
    token_type_ids: Tensor | None = None  # [B, L]
    has_padding: bool = True  # False: the host knows that every token is real
    masked_positions: Tensor | None = None  # [B, Q], 0 in empty slots
    masked_labels: Tensor | None = None  # [B, Q], 0 = empty slot
    prefix_lengths: Tensor | None = None  # [B]: key j is seen from i if j <= i or j < prefix; 0 = causal, L = all
    document_starts: Tensor | None = None  # [B, L]: position of the first token of each token's own document
    pairs: Tensor | None = None  # [B, L, L] bool, true = query i may attend key j
    draws: Draws | None = None  # what dropout and sampling are made of
    tied_gradient: TiedGradient | None = None  # joins both uses of the word table when they are in one process
    relative: RelativePositions | None = None
    hidden: Tensor | None = None  # [B, L, D]
    masked_hidden: Tensor | None = None  # [B, Q, D]
    masked_logits: Tensor | None = None  # [M, V] of the slots that the head computed, detached
    replaced: Tensor | None = None  # [B, L] bool: a sample stands there that is not the original token
    terms: Mapping[str, Term] = field(default_factory=dict)
    last_mask: _LastMask = field(default_factory=_LastMask, repr=False)  # shared by the copies of a carry
    more: Mapping[str, Tensor] = field(default_factory=dict)  # fields of a batch that were registered beside these

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor], **more: Any) -> "Carry":
        """A carry that starts with a batch, whose fields are those of ``batch.py``; and other fields of the carry."""
        fields = as_read(batch)
        numbers = fields.pop(SAMPLE_NUMBERS, None)
        has_padding = ATTENTION_MASK in fields
        if not has_padding:
            fields[ATTENTION_MASK] = torch.ones_like(fields["input_ids"], dtype=torch.bool)
        own: dict[str, Any] = {name: fields.pop(name) for name in list(fields) if name in cls.__dataclass_fields__}
        draws = None if numbers is None else Draws.of(numbers, batch["input_ids"].size(1))
        return cls(**own, has_padding=has_padding, draws=draws, more=fields, **more)

    def field(self, name: str) -> Tensor:
        """A field of the batch by its name.

        Raises:
            KeyError: the batch has none.
        """
        found = self.more[name] if name in self.more else getattr(self, name)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def visibility(self) -> AttentionMask | None:
        """Which pairs may attend, None for all; padding neither attends nor is attended."""
        rules = self.prefix_lengths, self.document_starts, self.pairs
        if not self.has_padding and all(rule is None for rule in rules):
            return None
        return self.last_mask.of(self.attention_mask, *rules)

    def zero_at_padding(self, hidden: Tensor) -> Tensor:
        """``hidden`` ``[B, L, D]`` with zeros where no token is."""
        return hidden * self.attention_mask.unsqueeze(-1) if self.has_padding else hidden

    def local_positions(self, positions: Tensor) -> Tensor:
        """``positions`` ``[B, Q]`` counted from the start of each one's own document."""
        if self.document_starts is None:
            return positions
        return positions - self.document_starts.gather(1, positions)


def _mask_of(
    real: Tensor, prefix_lengths: Tensor | None, document_starts: Tensor | None, pairs: Tensor | None, /
) -> AttentionMask:
    mask = padding_mask(real) if prefix_lengths is None else prefix_mask(real, prefix_lengths)
    if document_starts is not None:
        mask = mask.within_documents(document_starts)
    return replace(mask, pairs=pairs)


def gather_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``hidden`` ``[B, L, D]`` at ``positions`` ``[B, Q]``: ``[B, Q, D]``."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.size(-1)))
