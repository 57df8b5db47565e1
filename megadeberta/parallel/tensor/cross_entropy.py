"""The collectives of a cross entropy over a vocabulary that is divided among ranks; the logits are never gathered.

Shapes: R rows of a chunk · E embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.ops.softmax_rows import Statistics
from megadeberta.parallel.tensor.collectives import largest, start_sum
from megadeberta.parallel.tensor.shard import VocabularyShard


@dataclass(frozen=True)
class OtherShards:
    """What ``masked_cross_entropy`` has to know and do about the other shards. Every rank gets the same result.

    Over tp, for each chunk of rows: in forward an all-reduce of the largest logit ``[R]``, and one of the target's
    logit and of the sum of exponentials ``[2, R]``; in backward an all-reduce of the gradient of ``hidden`` ``[R, E]``,
    under way while that of the weight is computed.
    """

    shard: VocabularyShard

    @property
    def ids(self) -> range:
        """Of this shard."""
        return self.shard.rows

    @property
    def largest(self) -> int:
        """Ids of the largest shard: the same on every rank."""
        return self.shard.largest

    def combine(self, mine: Statistics) -> Statistics:
        """Of all shards, each ``[R, 1]``. Two all-reduces over tp."""
        best = largest(mine.best.clone(), self.shard.group)
        sums = torch.stack([mine.target, mine.total * (mine.best - best).exp()])  # [2, R, 1]
        target, total = start_sum(sums, self.shard.group).wait()
        return Statistics(best, total, target)

    def start_sum(self, gradient: Tensor) -> Callable[[], Tensor]:
        """Begins the sum of the shards' gradients ``[R, E]``; what is returned waits. One all-reduce over tp."""
        return start_sum(gradient, self.shard.group).wait
