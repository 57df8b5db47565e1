"""A draw over a vocabulary that is divided among ranks: each shard's best id, then the best of all.

Shapes: R rows.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megadeberta.parallel.tensor.collectives import largest

_LOW = 0xFFFFFFFF


def best_of_shards(values: Tensor, ids: Tensor, group: ProcessGroup) -> Tensor:
    """Ids ``[R]`` int64 with the largest value over all shards; the lowest id of equal ones, as ``argmax`` takes it.

    One all-reduce over tp of ``[R]`` int64. Values are compared in fp32.

    Args:
        values, ids: ``[R]`` the largest value in this shard and where in the whole vocabulary it is.
    """
    bits = values.float().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # IEEE order as two's complement order
    packed = (ordered.long() << 32) | (_LOW - ids)
    return _LOW - (largest(packed, group) & _LOW)
