"""What flows from layer to layer.

Shapes: B batch · L length · Q target rows a sample · D hidden size · P rows of the windowed relative table
V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megadeberta.ops.attention_mask import AttentionMask, padding_mask
from megadeberta.ops.tied_table import TiedGradient

Term = tuple[Tensor, Tensor]
"""(sum, count) of one named quantity over a micro batch; two scalars. Its mean is the ratio over the global batch."""


@dataclass(frozen=True)
class RelativePositions:
    """The table rows that distances below L can reach, and which row each distance reads.

    table: ``[P, D]``, after its LayerNorm. rows: ``[2L - 1]`` for the distances ``-(L-1) .. L-1``.
    """

    table: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Carry:
    """One micro batch on its way through the layers; each layer returns a copy with its own fields replaced.

    ``attention_mask`` says which tokens are real; embeddings, convolution and heads use it. Which pairs may attend is
    that and, where given, ``prefix_lengths``, ``document_starts`` and ``pairs`` together.
    """

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] bool, true = real token
    token_type_ids: Tensor | None = None  # [B, L]
    masked_positions: Tensor | None = None  # [B, Q], 0 in empty slots
    masked_labels: Tensor | None = None  # [B, Q], 0 = empty slot
    prefix_lengths: Tensor | None = None  # [B]: key j is seen from i if j <= i or j < prefix; 0 = causal, L = all
    document_starts: Tensor | None = None  # [B, L]: position of the first token of each token's own document
    pairs: Tensor | None = None  # [B, L, L] bool, true = query i may attend key j
    sample_keys: Tensor | None = None  # [B] int64: keys of the noise that samples are drawn with
    tied_gradient: TiedGradient | None = None  # joins both uses of the word table when they are in one process
    relative: RelativePositions | None = None
    hidden: Tensor | None = None  # [B, L, D]
    masked_hidden: Tensor | None = None  # [B, Q, D]
    masked_logits: Tensor | None = None  # [B, Q, V], detached
    replaced: Tensor | None = None  # [B, L] bool: a sample stands there that is not the original token
    token_logits: Tensor | None = None  # [B, L]: replaced or not
    terms: Mapping[str, Term] = field(default_factory=dict)

    @property
    def visibility(self) -> AttentionMask:
        """Which pairs may attend; padding neither attends nor is attended."""
        real = self.attention_mask
        if self.prefix_lengths is None and self.document_starts is None and self.pairs is None:
            return padding_mask(real)
        begin = torch.zeros_like(real, dtype=torch.int32)
        end = begin + real.size(1)
        if self.prefix_lengths is not None:
            after = torch.arange(1, real.size(1) + 1, dtype=torch.int32, device=real.device)
            end = torch.maximum(after, self.prefix_lengths.to(torch.int32).unsqueeze(-1))
        if self.document_starts is not None:
            starts = self.document_starts.to(torch.int32)
            begin, end = starts, torch.minimum(end, _document_ends(starts))
        return AttentionMask(begin, end * real, real, self.pairs)

    def local_positions(self, positions: Tensor) -> Tensor:
        """``positions`` ``[B, Q]`` counted from the start of each one's own document."""
        if self.document_starts is None:
            return positions
        return positions - self.document_starts.gather(1, positions)


def _document_ends(starts: Tensor) -> Tensor:
    """One past the last token of each token's own document: ``[B, L]`` from starts that never decrease."""
    return torch.searchsorted(starts, starts, right=True).to(starts.dtype)


def gather_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``hidden`` ``[B, L, D]`` at ``positions`` ``[B, Q]``: ``[B, Q, D]``."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.size(-1)))
