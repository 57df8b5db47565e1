"""What flows from layer to layer.

Shapes: B batch · L length · Q masked rows a sample · D hidden size · P rows of the windowed relative table.
"""

from dataclasses import dataclass

from torch import Tensor

from megadeberta.ops.attention_mask import AttentionMask, padding_mask
from megadeberta.ops.tied_table import TiedGradient


@dataclass(frozen=True)
class RelativePositions:
    """The table rows that distances below L can reach, and which row each distance reads.

    table: ``[P, D]``, after its LayerNorm. rows: ``[2L - 1]`` for the distances ``-(L-1) .. L-1``.
    """

    table: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Carry:
    """One micro batch on its way through the layers; each layer returns a copy with its own fields replaced."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] bool, true = real token
    token_type_ids: Tensor | None = None  # [B, L]
    masked_positions: Tensor | None = None  # [B, Q], 0 in empty slots
    masked_labels: Tensor | None = None  # [B, Q], 0 = empty slot
    tied_gradient: TiedGradient | None = None  # joins both uses of the word table when they are in one process
    relative: RelativePositions | None = None
    hidden: Tensor | None = None  # [B, L, D]
    masked_hidden: Tensor | None = None  # [B, Q, D]
    loss_sum: Tensor | None = None  # [], over the masked tokens of the micro batch
    target_count: Tensor | None = None  # []
    correct_count: Tensor | None = None  # []

    @property
    def visibility(self) -> AttentionMask:
        """Padding neither attends nor is attended."""
        return padding_mask(self.attention_mask)


def gather_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``hidden`` ``[B, L, D]`` at ``positions`` ``[B, Q]``: ``[B, Q, D]``."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.size(-1)))
