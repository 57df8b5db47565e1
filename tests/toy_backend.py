"""An attention backend that this one file adds: importing it lets ``training.attention`` name "toy".

What someone outside the project would write: a function of tensors, what it keeps for backward, and a registration.
Nothing else knows of it; that it trains under every layout and is planned is tested in tests/distributed/
test_toy_backend.py.

Shapes: B batch · N heads · H head size · Q query rows · L keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.ops.attention.backends import AttentionShape, Backend, register_backend
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms, score_scale
from megadeberta.ops.counter_dropout import CounterDropout, kept


def toy_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
) -> Tensor:
    """Looks up a row of the table for every pair: as the paper's equation 4 reads, with no care for memory."""
    batch, heads, rows, size = query.shape
    length = key.size(2)
    scores = torch.einsum("bnqh,bnlh->bnql", query, key)
    if position is not None:
        positions = torch.arange(rows).expand(batch, -1) if query_positions is None else query_positions  # [B, Q]
        distance = positions.unsqueeze(-1) - torch.arange(length)  # [B, Q, L]
        table_row = position.rows[distance + length - 1]
        if position.key is not None:
            scores = scores + torch.einsum("bnqh,nbqlh->bnql", query, position.key[:, table_row])
        if position.query is not None:
            scores = scores + torch.einsum("bnlh,nbqlh->bnql", key, position.query[:, table_row])
    scores = scores * score_scale(size, position)
    if mask is not None:
        visible = mask.dense(length).unsqueeze(1)  # [B, 1, Q, L]
        scores = scores.masked_fill(~visible, -1e30)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = weights * visible  # a row that sees nothing gives zeros
    if dropout is not None:
        numbers = (torch.arange(count).view(shape) for count, shape in ((batch, (-1, 1, 1)), (heads, (1, -1, 1))))
        survives = kept(dropout, *numbers, rows=torch.arange(rows).view(1, 1, -1), num_columns=length)
        weights = weights * survives * dropout.scale
    return weights @ value


@dataclass(frozen=True)
class _Toy(Backend):
    """Plain torch that also keeps a table row of every pair, for each position term."""

    def kept_bytes(self, shape: AttentionShape) -> int:
        return super().kept_bytes(shape) + len(shape.terms) * shape.pairs * shape.head_size * shape.element_bytes


TOY = _Toy("toy", "a table row for every pair", toy_attention)
register_backend(TOY)
