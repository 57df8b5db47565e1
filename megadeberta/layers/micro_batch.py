"""One micro batch as one rank sees it: the numbers that the sizes of its tensors follow from."""

from dataclasses import dataclass

from megadeberta.config.deepspeed_block import Precision
from megadeberta.ops.logits import TORCH

PRECISE_BYTES = 4
"""Softmax, log-sum-exp and the statistics of a LayerNorm are fp32 at least."""
INDEX_BYTES = 8
"""Ids, positions and dropout keys are int64."""


@dataclass(frozen=True)
class MicroBatch:
    """What passes through the layers at once.

    Shapes: B ``sequences`` · L ``length`` · Q ``slots`` · T ``tensor``.
    """

    sequences: int
    length: int
    slots: int
    """Target rows per sequence, empty ones included; see ``Objective.slots``."""
    precision: Precision = "fp32"
    """Of weights and activations."""
    attention: str = "reference"
    """The attention backend, which decides what is kept for the backward pass."""
    logits: str = TORCH
    """What computes loss and draw over the vocabulary; it decides what is kept too."""
    tensor: int = 1
    """Ranks that share heads, feed-forward and vocabulary."""
    sequence_parallel: bool = False
    """Those ranks also share the tokens between the sharded layers."""
    activation_checkpointing: bool = False
    """Encoder layers keep only their input and run forward twice."""
    selective_recompute: bool = False
    """Queries, keys, values and the input of the gelu are recomputed in the backward pass."""
    compiled: bool = False
    """Encoder layers run as programs of torch.compile (``training.compile``)."""
    targets: tuple[int, ...] | None = None
    """Rows that the decoder over the vocabulary computes for each of its losses. None = every slot, as on a GPU; on a
    CPU only the filled ones are computed."""

    @property
    def element_bytes(self) -> int:
        """Bytes per element of weights and activations."""
        return 4 if self.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """B x L."""
        return self.sequences * self.length

    @property
    def rows(self) -> int:
        """Target rows of the micro batch: B x Q."""
        return self.sequences * self.slots

    @property
    def own_tokens(self) -> int:
        """Tokens whose hidden states this rank keeps between the sharded layers: B x L, or B x L / T."""
        return self.tokens // self.tensor if self.sequence_parallel else self.tokens
