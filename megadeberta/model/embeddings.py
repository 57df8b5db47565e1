"""Token embeddings and the relative table.

Shapes: B batch · L length · E embedding width · D hidden size · V vocabulary · P rows of the windowed table.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import Carry, RelativePositions
from megadeberta.model.dropout import HiddenDropout
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.tied_table import TiedGradient, lookup


class WordTable(nn.Module):
    """Word vectors, whose gradient may be joined with that of the decoder that shares their table."""

    def __init__(self, rows: int, width: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Embedding(rows, width, padding_idx).weight
        # Sizes are not read from the weight: under ZeRO-3 it is flat and empty outside its module's forward.
        self.rows, self.width, self.padding_idx = rows, width, padding_idx

    def forward(self, ids: Tensor, tied: TiedGradient | None = None) -> Tensor:
        """``[...]`` -> ``[..., E]``."""
        own = None if tied is None else tied.of(self.weight)
        return lookup(self.weight, ids, padding=self.padding_idx, tied=own)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.width}, padding_idx={self.padding_idx}"


class Embeddings(nn.Module):
    """Word (+ absolute position, + token type) vectors, projected, normalised, zero at padding, dropped out.

    Order of operations as in microsoft/DeBERTa ``bert.py`` ``BertEmbeddings``.
    """

    def __init__(self, config: ModelConfig, *, differences: bool = False) -> None:
        """With ``differences``, the word and position tables are those of another model plus a difference of our own
        (see ``SharedEmbedding``)."""
        super().__init__()
        width = config.embedding_width
        table = SharedEmbedding if differences else nn.Embedding
        words = SharedEmbedding if differences else WordTable
        self.word_embeddings: nn.Module = words(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = (
            table(config.max_position_embeddings, width) if config.position_biased_input else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.embed_proj = nn.Linear(width, config.hidden_size, bias=False) if width != config.hidden_size else None
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)
        self.own_tokens = nn.Identity()  # an insertion point of sequence parallelism

    def forward(self, carry: Carry) -> Carry:
        shared = () if carry.tied_gradient is None else (carry.tied_gradient,)
        hidden = self.word_embeddings(carry.input_ids, *shared)  # [B, L, E]
        if self.position_embeddings is not None:
            positions = torch.arange(hidden.size(1), device=hidden.device).expand_as(carry.input_ids)
            hidden = hidden + self.position_embeddings(carry.local_positions(positions))
        if self.token_type_embeddings is not None:
            types = carry.token_type_ids
            hidden = hidden + self.token_type_embeddings(torch.zeros_like(carry.input_ids) if types is None else types)
        if self.embed_proj is not None:
            hidden = self.embed_proj(hidden)  # [B, L, E] -> [B, L, D]
        hidden = carry.zero_at_padding(self.layer_norm(hidden))
        return replace(carry, hidden=self.own_tokens(self.dropout(hidden, carry.draws)))


class SharedEmbedding(nn.Module):
    """Gradient-disentangled sharing: ``stop_gradient(base) + delta`` (DeBERTaV3 paper, section 3.3).

    ``base`` is the generator's table (a Tie); ``delta`` starts at zero and takes all of the discriminator's gradient.
    """

    base: nn.Parameter

    def __init__(self, rows: int, width: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.register_parameter("base", None)
        self.delta = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` -> ``[..., E]``."""
        # Rows are looked up in both tables before the sum: the sum of the tables would be as large as a third one.
        base = functional.embedding(ids, self.base.detach())
        return base + lookup(self.delta, ids, padding=self.padding_idx)


class RelativeTable(nn.Module):
    """The one table of relative positions, normalised once per forward and cut to the rows that can be read.

    A sequence of length L reads a contiguous window of the ``2k`` rows; projecting only the window gives the same
    scores for less work (microsoft/DeBERTa's v1 "span", here for buckets too).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_buckets = config.position_buckets
        self.span = config.relative_span
        self.embedding = nn.Embedding(2 * config.relative_half_width, config.hidden_size)
        self.layer_norm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm_rel_ebd == "layer_norm" else None
        )
        self.into_shards: nn.Module = nn.Identity()  # an insertion point of tensor parallelism

    def forward(self, carry: Carry) -> Carry:
        ids = carry.input_ids
        window, rows = _window(ids.size(1), self.num_buckets, self.span, ids.device)
        # Through the embedding module, not its weight: ZeRO-3 gathers a parameter when its own module runs.
        table = self.embedding(window)  # [P, D]
        if self.layer_norm is not None:
            table = self.layer_norm(table)
        return replace(carry, relative=RelativePositions(self.into_shards(table), rows))


@lru_cache(maxsize=32)
def _window(length: int, num_buckets: int, span: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which rows of the whole table a sequence reads ``[P]``, and which of those each distance reads ``[2L - 1]``.

    Kept on the device: a copy from the host would make it wait in every forward pass.
    """
    rows = rows_by_distance(length, num_buckets, span)
    first, last = int(rows[0]), int(rows[-1])
    return torch.arange(first, last + 1, device=device), (rows - first).to(device, torch.int32)
