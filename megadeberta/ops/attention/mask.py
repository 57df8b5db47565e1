"""Which keys a query may attend to, in a form that every backend reads without an [L, L] tensor.

Shapes: B batch · L length · Q query rows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionMask:
    """Query ``i`` of sample ``b`` sees key ``j`` iff ``begin[b, i] <= j < end[b, i]`` and ``real[b, j]``.

    Padding, causal, prefix and document masks are all of this form. A query without any visible key gives zeros. Any
    other rule goes into ``pairs``, which not every backend reads (``Backend.takes_pairs``).

    begin, end: ``[B, Q]`` integers. real: ``[B, L]`` bool, or None when every key is real. pairs: ``[B, Q, L]`` bool,
    what else must hold, or None.
    """

    begin: Tensor
    end: Tensor
    real: Tensor | None = None
    pairs: Tensor | None = None

    def of_samples(self, count: int) -> "AttentionMask":
        """The mask of the first samples only."""
        real, pairs = (None if each is None else each[:count] for each in (self.real, self.pairs))
        return AttentionMask(self.begin[:count], self.end[:count], real, pairs)

    def at_rows(self, positions: Tensor) -> "AttentionMask":
        """The mask of the queries at ``positions`` ``[B, Q]`` only."""
        pairs = self.pairs
        if pairs is not None:
            pairs = pairs.gather(1, positions.unsqueeze(-1).expand(-1, -1, pairs.size(-1)))
        return replace(self, begin=self.begin.gather(1, positions), end=self.end.gather(1, positions), pairs=pairs)

    def within_documents(self, starts: Tensor) -> "AttentionMask":
        """This mask of all queries, limited to each one's own document.

        Args:
            starts: ``[B, L]`` position of the first token of each token's document; never decreases.
        """
        ends = torch.searchsorted(starts, starts, right=True)
        return replace(self, begin=starts.to(self.begin.dtype), end=torch.minimum(self.end, ends.to(self.end.dtype)))

    def dense(self, num_keys: int) -> Tensor:
        """``[B, Q, L]`` bool; what the reference computes with."""
        columns = torch.arange(num_keys, device=self.begin.device)
        visible = (columns >= self.begin.unsqueeze(-1)) & (columns < self.end.unsqueeze(-1))
        if self.pairs is not None:
            visible = visible & self.pairs
        return visible if self.real is None else visible & self.real.unsqueeze(1)

    def hides_nothing(self, num_keys: int) -> bool:
        """Whether every query sees every key. Reads values: on a GPU this would wait for the device."""
        unlimited = bool((self.begin <= 0).all()) and bool((self.end >= num_keys).all())
        return unlimited and self.pairs is None and (self.real is None or bool(self.real.all()))


def padding_mask(real: Tensor) -> AttentionMask:
    """Padding neither attends nor is attended. real: ``[B, L]`` bool, padding anywhere."""
    begin = torch.zeros_like(real, dtype=torch.int32)
    return AttentionMask(begin, real.to(torch.int32) * real.size(1), real)


def prefix_mask(real: Tensor, prefix_lengths: Tensor) -> AttentionMask:
    """The first ``prefix_lengths[b]`` tokens see each other; later tokens see those and what is before them."""
    after = torch.arange(1, real.size(1) + 1, dtype=torch.int32, device=real.device)  # one past the token itself
    end = torch.maximum(after, prefix_lengths.to(torch.int32).unsqueeze(-1)) * real
    return AttentionMask(torch.zeros_like(end), end, real)
