"""Disentangled self-attention with its output projection.

Shapes: B batch · L length · Lq query rows · D hidden size · N heads · H head size · P rows of the windowed table.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.model.carry import RelativePositions
from megadeberta.model.dropout import AttentionDropout, Draws, HiddenDropout
from megadeberta.model.joint_linear import JointLinear, LinearMap
from megadeberta.model.residual import ResidualNorm, add_and_norm
from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.recompute import gelu_then, recomputed


@dataclass(frozen=True)
class QueryStream:
    """The rows that attend: their hidden states, where they stand among the keys, what they see and what they draw.

    positions: ``[B, Lq]``, or None when row i is position i.
    """

    hidden: Tensor  # [B, Lq, D]
    mask: AttentionMask | None
    draws: Draws | None
    positions: Tensor | None = None


@dataclass(frozen=True)
class ProjectedKeys:
    """All that does not depend on the query stream; both passes of the mask decoder share it."""

    key: Tensor  # [B, N, L, H]
    value: Tensor  # [B, N, L, H]
    position: PositionTerms | None
    query: Tensor | None = None  # [B, N, L, H], where the rows that attend are the keys' own
    recompute: Callable[[], Sequence[Tensor]] | None = None  # key, value and query, where they are not to be kept


class DisentangledSelfAttention(nn.Module):
    """Three projections, position projections that are shared or separate, and the attention itself.

    One class covers v1, v2 and v3: v1's packed ``in_proj`` is these three projections with ``key_bias=False``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = config.head_size
        terms = config.pos_att_type if config.relative_attention else ()
        self.content_to_position, self.position_to_content = "c2p" in terms, "p2c" in terms
        self.query_proj = nn.Linear(size, size)
        self.key_proj = nn.Linear(size, size, bias=config.key_bias)
        self.value_proj = nn.Linear(size, size)
        separate = not config.share_att_key
        self.pos_key_proj = (
            nn.Linear(size, size, bias=config.key_bias) if separate and self.content_to_position else None
        )
        self.pos_query_proj = nn.Linear(size, size) if separate and self.position_to_content else None
        self.position_dropout = HiddenDropout(config.hidden_dropout_prob)
        self.dropout = AttentionDropout(config.attention_probs_dropout_prob)
        self.project = JointLinear()
        self.backend = AUTO
        self.recompute = False

    def project_keys(
        self, hidden: Tensor, relative: RelativePositions | None, draws: Draws | None, *, with_query: bool = False
    ) -> ProjectedKeys:
        """Keys and values of ``hidden`` ``[B, L, D]`` and the position projections, once for all query streams.

        Args:
            with_query: project the queries of ``hidden`` too; the stream then need not.
        """
        of_hidden = (self.key_proj, self.value_proj, *([self.query_proj] if with_query else []))
        table: Tensor | None = None
        of_table: list[nn.Linear] = []
        if relative is not None and (self.content_to_position or self.position_to_content):
            table = self.position_dropout.of_table(relative.table, draws)  # [P, D]
            of_table += [self.pos_key_proj or self.key_proj] if self.content_to_position else []
            of_table += [self.pos_query_proj or self.query_proj] if self.position_to_content else []
        projected = [
            self._split_heads(each) for each in self.project(hidden, *of_hidden, table=table, of_table=of_table)
        ]
        key, value, *query = projected[: len(of_hidden)]
        by_row = iter(projected[len(of_hidden) :])
        position = None
        if relative is not None and of_table:
            position_key = next(by_row) if self.content_to_position else None
            position = PositionTerms(relative.rows, position_key, next(by_row, None))
        recompute = (lambda: self.project(hidden.detach(), *of_hidden)) if self.recompute else None
        return ProjectedKeys(key, value, position, query[0] if with_query else None, recompute=recompute)

    def forward(self, query: QueryStream, keys: ProjectedKeys) -> Tensor:
        """Context ``[B, Lq, D]`` of the query stream."""
        rows = keys.query
        if rows is None:
            (projected,) = self.project(query.hidden, self.query_proj)
            rows = self._split_heads(projected)
        projected = [tensor for tensor in (keys.key, keys.value, keys.query) if tensor is not None]
        with nullcontext() if keys.recompute is None else recomputed(projected, keys.recompute):
            context = disentangled_attention(
                rows,
                keys.key,
                keys.value,
                position=keys.position,
                query_positions=query.positions,
                mask=query.mask,
                dropout=self.dropout(query.draws),
                backend=self.backend,
            )  # [B, N, Lq, H]
        return context.transpose(1, 2).flatten(2)

    def _split_heads(self, projected: Tensor) -> Tensor:
        """``[..., L, D]`` -> ``[..., N, L, H]``; N is inferred, so that a shard of the heads needs no other code."""
        return projected.unflatten(-1, (-1, self.head_size)).transpose(-3, -2)


class AttentionBlock(nn.Module):
    """Attention, output projection, dropout, residual on the query stream, LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = DisentangledSelfAttention(config)
        self.dense: LinearMap = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = ResidualNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    def forward(self, query: QueryStream, keys: ProjectedKeys) -> Tensor:
        """``[B, Lq, D]``."""
        branch = self.dense(self.attention(query, keys))
        return add_and_norm(self.layer_norm, self.dropout, branch=branch, residual=query.hidden, draws=query.draws)


class FeedForward(nn.Module):
    """Linear, exact gelu, Linear, dropout, residual, LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up: LinearMap = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down: LinearMap = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layer_norm = ResidualNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)
        self.recompute = False

    def forward(self, hidden: Tensor, draws: Draws | None) -> Tensor:
        """``[B, Lq, D]``."""
        recompute = (lambda: self.up(hidden.detach())) if self.recompute else None
        branch = gelu_then(self.down, self.up(hidden), recompute=recompute)
        return add_and_norm(self.layer_norm, self.dropout, branch=branch, residual=hidden, draws=draws)
