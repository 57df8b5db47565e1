"""Tables and a decoder that hold a part of the vocabulary.

Shapes: E embedding width · M rows with a target · V vocabulary · T tensor-parallel ranks (shards of about V/T rows).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from megadeberta.model.embeddings import SharedEmbedding, WordTable
from megadeberta.model.mlm_head import TiedDecoder, decoder_loss
from megadeberta.ops.masked_cross_entropy import TokenLoss
from megadeberta.ops.tied_table import TiedGradient, lookup
from megadeberta.parallel.tensor.collectives import sum_forward
from megadeberta.parallel.tensor.cross_entropy import OtherShards
from megadeberta.parallel.tensor.shard import VocabularyShard


def local_rows(ids: Tensor, rows: range) -> tuple[Tensor, Tensor]:
    """Row numbers within a shard that holds ``rows``, 0 for ids of other shards; and 1 where it holds the id.

    Both have the shape of ``ids``; the second has a last dimension of 1 more.
    """
    is_here = (ids >= rows.start) & (ids < rows.stop)
    return (ids - rows.start).masked_fill(~is_here, 0), is_here.unsqueeze(-1)


class VocabularyTable(nn.Module):
    """The rows of one shard of a word table. All-reduce over tp in forward: one shard has the row, the others zeros."""

    def __init__(self, table: WordTable, *, shard: VocabularyShard) -> None:
        super().__init__()
        self.weight = table.weight
        self.shard = shard
        # Ids of other shards are looked up in row 0 here too; their gradient is zero whatever the row.
        self.padding = _local_padding(table.padding_idx, shard.rows)

    def forward(self, ids: Tensor, tied: TiedGradient | None = None) -> Tensor:
        """``[...]`` -> ``[..., E]``."""
        local, is_here = local_rows(ids, self.shard.rows)
        own = None if tied is None else tied.of(self.weight)
        found = lookup(self.weight, local, padding=self.padding, tied=own)
        return sum_forward(found * is_here, self.shard.group)


class SharedVocabularyTable(nn.Module):
    """The rows of one shard of ``stop_gradient(base) + delta``. All-reduce over tp in forward."""

    base: nn.Parameter

    def __init__(self, table: SharedEmbedding, *, shard: VocabularyShard) -> None:
        super().__init__()
        self.register_parameter("base", table.base)
        self.delta = table.delta
        self.shard = shard
        self.padding = _local_padding(table.padding_idx, shard.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` -> ``[..., E]``."""
        local, is_here = local_rows(ids, self.shard.rows)
        base = functional.embedding(local, self.base.detach())
        return sum_forward((base + lookup(self.delta, local, padding=self.padding)) * is_here, self.shard.group)


class VocabularyDecoder(nn.Module):
    """Projection onto one shard of the word table, and the cross entropy over all of them."""

    weight: nn.Parameter

    def __init__(self, decoder: TiedDecoder, *, shard: VocabularyShard) -> None:
        super().__init__()
        self.register_parameter("weight", decoder.weight)
        self.bias = decoder.bias
        self.shard = shard

    def forward(self, hidden: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor | TokenLoss:
        """As ``TiedDecoder``. Logits are those of this shard, ``[..., V/T]``, and the loss is over the whole vocabulary
        (see ``OtherShards`` for its collectives)."""
        if labels is None:
            return functional.linear(hidden, self.weight, self.bias)
        return decoder_loss(self.weight, self.bias, hidden, labels, shards=OtherShards(self.shard), **options)


def _local_padding(padding: int | None, rows: range) -> int | None:
    return None if padding is None or padding not in rows else padding - rows.start
