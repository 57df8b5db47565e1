"""transformers' DeBERTa attention and encoder with the attention op inside: subclasses that hold nothing new.

A module becomes one by its ``__class__``, so parameters, names, hooks, adapters and saved files stay as they are. The
projections are called as modules, so that adapters (LoRA) and quantised layers in their place work.

Shapes: B batch · L length · D hidden size · N heads · H head size · P rows of the table in reach.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.deberta import modeling_deberta as v1
from transformers.models.deberta_v2 import modeling_deberta_v2 as v2

from megadeberta.hf.backend import BackendChoice, choose_backend
from megadeberta.hf.inputs import dense_distances, dense_mask, read_mask, small_mask, table_reach
from megadeberta.hf.trial import LayerShape
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.counter_dropout import CounterDropout

TERMS = ("c2p", "p2c")


class FastAttention(nn.Module, ABC):
    """What both versions share. Mixed in before a ``DisentangledSelfAttention`` of transformers."""

    EAGER: ClassVar[Any]
    choice: BackendChoice
    num_attention_heads: int
    all_head_size: int
    pos_att_type: Sequence[str]
    relative_attention: bool
    max_relative_positions: int
    dropout: nn.Dropout
    pos_dropout: nn.Dropout

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[B, L, D]`` and None, as of transformers' class.

        Args:
            attention_mask: of ``small_mask``. relative_pos: of the encoder's ``get_rel_pos``, ``[2L - 1]``.
        """
        reason = self._reason_for_eager(hidden_states, attention_mask, output_attentions, query_states, relative_pos)
        if reason:
            warnings.warn(f"transformers' own attention runs, not the fast one: {reason}", stacklevel=2)
            if relative_pos is not None and relative_pos.dim() == 1:
                relative_pos = dense_distances(relative_pos)
            mask = dense_mask(attention_mask, hidden_states.device)
            return super().forward(hidden_states, mask, output_attentions, query_states, relative_pos, rel_embeddings)
        position = None
        if self.relative_attention and relative_pos is not None and rel_embeddings is not None:
            position = self._position_terms(rel_embeddings, relative_pos)
        context = self._attend(self.project(hidden_states, query_states), position, attention_mask)
        return context, None

    @abstractmethod
    def project(self, hidden: Tensor, query_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value ``[B, N, L, H]`` in one dtype."""

    @abstractmethod
    def project_table(self, table: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """K_r and Q_r ``[P, D]`` of a part ``[P, D]`` of the relative table, where the model has the term."""

    @abstractmethod
    def buckets(self) -> tuple[int, int]:
        """Half of the table's rows, and the number of logarithmic buckets or less than 1."""

    def shape(self, longest: int) -> LayerShape:
        """For a trial with sequences of ``longest`` tokens."""
        return LayerShape(
            heads=self.num_attention_heads,
            head_size=self.all_head_size // self.num_attention_heads,
            longest=longest,
            half_width=self.buckets()[0] if self.relative_attention else 0,
            terms=tuple(term for term in TERMS if term in self.pos_att_type),
            dropout=self.dropout.p,
        )

    def _reason_for_eager(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        output_attentions: bool,
        query_states: Tensor | None,
        relative_pos: Tensor | None,
    ) -> str:
        """What the op cannot do in this call; empty if it can do all of it."""
        if output_attentions:
            return "output_attentions=True asks for the weights, which are never whole"
        if query_states is not None and query_states.shape != hidden.shape:
            return "the query states have another shape than the hidden states"
        if self.relative_attention and (relative_pos is None or relative_pos.dim() != 1):
            return "the relative positions are the caller's and not the encoder's"
        if mask is not None and not (mask.dim() == 2 or (mask.dim() == 4 and mask.size(1) == 1)):
            return f"the attention mask has the shape {list(mask.shape)}, other than [B, L], [B, L, L] or [B, 1, ., L]"
        if self._drops() and not 0 < round(256 * self.dropout.p) < 256:
            return f"attention dropout {self.dropout.p} is no multiple of 1/256 when rounded, other than 0 and 1"
        return ""

    def _drops(self) -> bool:
        return self.dropout.training and self.dropout.p > 0

    def _attend(
        self, projected: tuple[Tensor, Tensor, Tensor], position: PositionTerms | None, attention_mask: Tensor | None
    ) -> Tensor:
        """Context ``[B, L, D]`` of query, key and value ``[B, N, L, H]``."""
        query, key, value = projected
        mask = blind = None
        if attention_mask is not None:
            mask, blind = read_mask(attention_mask, batch=key.size(0), length=key.size(2))
        context = disentangled_attention(
            self._rescaled(query, position),
            key,
            value,
            position=position,
            mask=mask,
            dropout=self._draw(key),
            backend=self.choice.on(key.device),
        )
        context = context.transpose(1, 2).flatten(2)
        if blind is None:
            return context
        # Softmax over nothing but equal scores, and not the op's zeros: losses over all positions read such rows.
        uniform = value.mean(2).flatten(1).unsqueeze(1)  # [B, 1, D]
        return torch.addcmul(context, blind.to(context.dtype), uniform)

    def _draw(self, key: Tensor) -> CounterDropout | None:
        """Dropout with a seed from torch's generator of the device, new for every call: ``torch.manual_seed`` repeats
        it, and gradient checkpointing, which restores the generator, draws the same."""
        if not self._drops():
            return None
        seed = torch.randint(-(2**63), 2**63 - 1, (), device=key.device)
        return CounterDropout(self.dropout.p, seed, torch.arange(key.size(0), device=key.device))

    def _position_terms(self, table: Tensor, distances: Tensor) -> PositionTerms | None:
        """Of ``table`` ``[2k, D]`` only the rows that distances of this length reach are projected, once for all
        samples."""
        half_width, buckets = self.buckets()
        length = (distances.size(0) + 1) // 2
        reach = table_reach(length, half_width, buckets=buckets, max_distance=self.max_relative_positions)
        rows = (distances + reach).clamp(0, 2 * reach - 1)
        part = self.pos_dropout(table[half_width - reach : half_width + reach])
        projected = (None if t is None else self._split_heads(t) for t in self.project_table(part))
        position = PositionTerms(rows, *projected)
        return position if position.count else None

    def _rescaled(self, query: Tensor, position: PositionTerms | None) -> Tensor:
        """transformers counts ``pos_att_type`` in the scale even without relative attention; the op counts terms."""
        terms = sum(term in self.pos_att_type for term in TERMS)
        return query if position is not None or not terms else query * (1 + terms) ** -0.5

    def _split_heads(self, projected: Tensor) -> Tensor:
        """``[..., L, D]`` -> ``[..., N, L, H]``."""
        return projected.unflatten(-1, (self.num_attention_heads, -1)).transpose(-3, -2)


class FastAttentionV1(FastAttention, v1.DisentangledSelfAttention):
    """Of DeBERTa v1: packed projections, keys without bias."""

    EAGER = v1.DisentangledSelfAttention

    def project(self, hidden: Tensor, query_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        packed = self._split_heads(self.in_proj(hidden))  # [B, N, L, 3H]
        query, key, value = packed.chunk(3, dim=-1)
        biases = (bias.view(self.num_attention_heads, 1, -1) for bias in (self.q_bias, self.v_bias))
        # Under autocast the biases are of a higher precision than the products.
        query, value = (t + b.to(t.dtype) for t, b in zip((query, value), biases, strict=True))
        return query, key, value

    def project_table(self, table: Tensor) -> tuple[Tensor | None, Tensor | None]:
        key = self.pos_proj(table) if "c2p" in self.pos_att_type else None
        return key, self.pos_q_proj(table) if "p2c" in self.pos_att_type else None

    def buckets(self) -> tuple[int, int]:
        return self.max_relative_positions, -1

    def _reason_for_eager(self, hidden: Tensor, mask: Tensor | None, output_attentions: bool, *rest: Any) -> str:
        reason = super()._reason_for_eager(hidden, mask, output_attentions, *rest)
        return reason or ("DeBERTa v1 has its own way with query states" if rest[0] is not None else "")


class FastAttentionV2(FastAttention, v2.DisentangledSelfAttention):
    """Of DeBERTa v2 and v3."""

    EAGER = v2.DisentangledSelfAttention

    def project(self, hidden: Tensor, query_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        query = self.query_proj(hidden if query_states is None else query_states)
        return (
            self._split_heads(query),
            self._split_heads(self.key_proj(hidden)),
            self._split_heads(self.value_proj(hidden)),
        )

    def project_table(self, table: Tensor) -> tuple[Tensor | None, Tensor | None]:
        key = query = None
        if "c2p" in self.pos_att_type:
            key = (self.key_proj if self.share_att_key else self.pos_key_proj)(table)
        if "p2c" in self.pos_att_type:
            query = (self.query_proj if self.share_att_key else self.pos_query_proj)(table)
        return key, query

    def buckets(self) -> tuple[int, int]:
        return self.pos_ebd_size, self.position_buckets


class FastEncoder(nn.Module):
    """What both versions share. Mixed in before an encoder of transformers; its layers have ``FastAttention``."""

    EAGER: ClassVar[Any]
    choice: BackendChoice
    layer: Any
    relative_attention: bool

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As of transformers' class."""
        device = hidden_states.device
        if device.type != self.choice.device_type and not torch.compiler.is_compiling():
            autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else hidden_states.dtype
            self.choose(self.choice.setting, device, dtype)
        return super().forward(hidden_states, *args, **kwargs)

    def choose(self, setting: str, device: torch.device, dtype: torch.dtype) -> None:
        """Let all layers take what ``setting`` means on ``device``.

        Raises:
            ConfigError: see ``choose_backend``.
        """
        first = self.layer[0].attention
        shape = first.self.shape(first.config.max_position_embeddings)
        self.choice = choose_backend(setting, device, dtype, shape=shape)
        for layer in self.layer:
            layer.attention.self.choice = self.choice

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor | None:
        """For the layers; see ``small_mask``."""
        return small_mask(attention_mask)

    def get_rel_pos(
        self, hidden_states: Tensor, query_states: Tensor | None = None, relative_pos: Tensor | None = None
    ) -> Tensor | None:
        """For the layers: the bucket of each distance ``-(L-1) .. L-1``, as transformers rounds them on this device."""
        length = hidden_states.size(-2)
        same = query_states is None or query_states.size(-2) == length
        if not self.relative_attention or relative_pos is not None or not same:
            return self.EAGER.get_rel_pos(self, hidden_states, query_states, relative_pos)
        return self.bucketed(torch.arange(1 - length, length, device=hidden_states.device))

    def bucketed(self, distances: Tensor) -> Tensor:
        """int64 ``[2L - 1]``."""
        return distances


class FastEncoderV1(FastEncoder, v1.DebertaEncoder):
    """Of DeBERTa v1."""

    EAGER = v1.DebertaEncoder


class FastEncoderV2(FastEncoder, v2.DebertaV2Encoder):
    """Of DeBERTa v2 and v3."""

    EAGER = v2.DebertaV2Encoder

    def bucketed(self, distances: Tensor) -> Tensor:
        if self.position_buckets < 1 or self.max_relative_positions < 1:
            return distances
        buckets = v2.make_log_bucket_position(distances, self.position_buckets, self.max_relative_positions)
        return buckets.to(torch.int64)
