"""Dropout decisions as a function of (seed, sample, head, row, column): nothing is stored, and no layout changes them.

One Philox4x32 block (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) gives 16 bytes, one for each of
16 neighbouring columns; an element is dropped when its byte is below ``256 p``. Every backend computes the same bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDS = 7
"""The fewest rounds that pass BigCrush in the paper above; ten is its conservative choice."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class CounterDropout:
    """Attention dropout of one layer call.

    The probability is rounded to a multiple of 1/256 (0.1 becomes 26/256), and kept weights are scaled by the exact
    inverse of what is kept, so the expectation is right.

    seed: int64 scalar tensor on the device of the scores. samples: int64 ``[B]``, global numbers of the samples of
    this call, below 2**31. first_head: global number of its first head, for ranks that hold a part of the heads.
    """

    probability: float
    seed: Tensor
    samples: Tensor
    first_head: int = 0

    @property
    def threshold(self) -> int:
        """Bytes below it are dropped."""
        return round(self.probability * 256)

    @property
    def scale(self) -> float:
        return 256.0 / (256 - self.threshold)


def kept(dropout: CounterDropout, samples: Tensor, heads: Tensor, *, rows: Tensor, num_columns: int) -> Tensor:
    """Which attention weights survive, for local samples and heads and for rows given by their number in the call.

    Args:
        samples, heads, rows: integers that broadcast against each other, of shape ``[...]``.

    Returns:
        bool ``[..., num_columns]``.
    """
    groups = torch.arange((num_columns + 15) // 16, device=dropout.seed.device)
    words = philox(
        dropout.seed,
        groups,
        rows.unsqueeze(-1),
        (heads + dropout.first_head).unsqueeze(-1),
        dropout.samples[samples].unsqueeze(-1),
    )
    # Little-endian: byte k of word w decides column 4 w + k of the group.
    columns = torch.stack(words, dim=-1).to(torch.int32).view(torch.uint8)  # [..., groups, 16]
    return columns.flatten(-2)[..., :num_columns] >= dropout.threshold


def philox(seed: Tensor, *counters: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32 of four counters that broadcast against each other: four int64 tensors with values below 2**32."""
    if seed.device.type == "cpu":
        # numpy has unsigned words and a third of torch's cost a call; the tensors of a tile are small.
        words = _rounds(int(seed), *(counter.numpy().astype(np.uint64) for counter in counters))
        words = tuple(torch.from_numpy(np.asarray(word, dtype=np.int64)) for word in words)
    else:
        words = _rounds(seed, *counters)
    return torch.broadcast_tensors(*words)


def _rounds(seed: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> tuple[Any, ...]:
    """The rounds in any 64-bit integers: a product may wrap, and its upper word is masked after the shift."""
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((second >> 32) & _LOW) ^ c1 ^ key0, ((first >> 32) & _LOW) ^ c3 ^ key1
        c1, c3 = second & _LOW, first & _LOW
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3
