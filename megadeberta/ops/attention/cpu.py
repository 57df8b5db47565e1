"""Disentangled attention on a CPU: one head and a few samples at a time, so that the scores stay in the L2 cache.

Heads outside, tiles of samples and rows inside: a head's rows of the table are laid out by distance once for all of its
tiles, and these add to one gradient of them.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P table rows · G samples of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megadeberta.ops.attention.cpu_scores import GatheredScores, Scratch, SkewedScores, Tile
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms, score_scale
from megadeberta.ops.attention.relative_position import relative_index
from megadeberta.ops.counter_dropout import CounterDropout, kept

TILE_ELEMENTS = 2**19
"""Scores of one tile: 2 MiB in fp32, the L2 cache of a current server core; see docs/kernels.md for other sizes."""

_HIDDEN = -1e30
"""Added to hidden scores: finite, so that a row with nothing visible stays free of NaN."""


def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
    keep_probabilities: bool = True,
) -> Tensor:
    """See :func:`megadeberta.ops.attention.interface.disentangled_attention`.

    With ``keep_probabilities`` the backward pass reads the softmax of the forward pass and what dropout drew,
    ``[N, B, Q, L]`` in fp32; without, it computes the scores and draws again, and nothing of that size is kept.
    """
    rows = None if position is None else position.rows
    tables = (None, None) if position is None else (position.key, position.query)
    where = (None,) * 4 if mask is None else (mask.begin, mask.end, mask.real, mask.pairs)
    draws = (None, None) if dropout is None else (dropout.seed, dropout.samples)
    inputs = (query, key, value, *tables)
    has_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    context, _ = torch.ops.megadeberta.cpu_attention_forward(
        *inputs,
        rows,
        query_positions,
        *where,
        *draws,
        score_scale(query.size(-1), position),
        0.0 if dropout is None else dropout.probability,
        0 if dropout is None else dropout.first_head,
        keep_probabilities and has_backward,
    )
    return context.transpose(1, 2)


lean_cpu_attention = partial(cpu_attention, keep_probabilities=False)


@dataclass(frozen=True)
class _Call:
    """What one call is about, besides the tensors that get gradients."""

    rows: Tensor | None
    query_positions: Tensor | None
    mask: AttentionMask | None
    dropout: CounterDropout | None
    scale: float

    @property
    def kept_scale(self) -> float:
        """Of the weights that dropout keeps."""
        return 1.0 if self.dropout is None else self.dropout.scale

    @classmethod
    def of(
        cls, lookups: Sequence[Tensor | None], num_keys: int, scale: float, probability: float, first_head: int
    ) -> "_Call":
        """From the arguments of the operators below."""
        rows, positions, begin, end, real, pairs, seed, samples = lookups
        mask = None if begin is None or end is None else AttentionMask(begin, end, real, pairs)
        if mask is not None and mask.hides_nothing(num_keys):
            mask = None
        dropout = None if seed is None or samples is None else CounterDropout(probability, seed, samples, first_head)
        return cls(rows, positions, mask, dropout, scale)


_OptionalTensor = Tensor | None


@torch.library.custom_op("megadeberta::cpu_attention_forward", mutates_args=())
@torch.autocast("cpu", enabled=False)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    rows: _OptionalTensor, positions: _OptionalTensor,
    begin: _OptionalTensor, end: _OptionalTensor, real: _OptionalTensor, pairs: _OptionalTensor,
    seed: _OptionalTensor, samples: _OptionalTensor,
    scale: float, probability: float, first_head: int, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Context ``[B, Q, N, H]``, and what ``_Head.weights`` gives, ``[N, B, Q, L]``, empty unless ``keep``."""
    batch, heads, num_rows, head_size = query.shape
    lookups = (rows, positions, begin, end, real, pairs, seed, samples)
    call = _Call.of(lookups, key.size(2), scale, probability, first_head)
    work = _Work(call, query, key, value, position_key, position_query)
    saved = query.new_empty((heads, batch, num_rows, key.size(2)) if keep else 0, dtype=work.precise)
    # Rows before heads, as the output projection reads them: ``flatten`` of the last two is a view.
    context = query.new_empty(batch, num_rows, heads, head_size, dtype=work.precise)
    for number in range(heads):
        head = work.head(number)
        for tile in work.tiles:
            weights = head.weights(tile, saved[number, tile.samples, tile.rows] if keep else None)
            if call.dropout is not None:
                weights = weights.clamp_min(0)
            out = context[tile.samples, tile.rows, number]
            torch.baddbmm(out, weights, head.value[tile.samples], beta=0, alpha=call.kept_scale, out=out)
    return context.to(query.dtype), saved


@_forward.register_fake
def _(query: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, num_rows, head_size = query.shape
    saved = (heads, batch, num_rows, key.size(2)) if rest[-1] else 0
    return query.new_empty(batch, num_rows, heads, head_size), query.new_empty(saved, dtype=_precise(query))


@torch.library.custom_op("megadeberta::cpu_attention_backward", mutates_args=())
@torch.autocast("cpu", enabled=False)  # a backward pass may be called inside the context, too
def _backward(
    grad_context: Tensor, saved: Tensor,
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    rows: _OptionalTensor, positions: _OptionalTensor,
    begin: _OptionalTensor, end: _OptionalTensor, real: _OptionalTensor, pairs: _OptionalTensor,
    seed: _OptionalTensor, samples: _OptionalTensor,
    scale: float, probability: float, first_head: int, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value ``[B, ., N, H]``, and of the tables ``[P, N, H]`` (empty if absent)."""
    lookups = (rows, positions, begin, end, real, pairs, seed, samples)
    inputs = (query, key, value, position_key, position_query)
    work = _Work(_Call.of(lookups, key.size(2), scale, probability, first_head), *inputs)
    # Rows before heads: what the projections' backward reads without a copy.
    grads = [torch.zeros(_rows_first(t), dtype=work.precise) for t in inputs[:3]]
    tables = work.zero_table_gradients()
    for number in range(query.size(1)):
        head = work.head(number, tables)
        grad_n = grad_context[:, :, number].to(work.precise)
        sums = [grad[:, :, number] for grad in grads]
        for tile in work.tiles:
            weights = saved[number, tile.samples, tile.rows] if keep else head.weights(tile)
            head.backward(tile, weights, grad_n[tile.samples, tile.rows], into=sums)
    folded = work.fold(tables)
    grad_query, grad_key, grad_value = (grad.to(t.dtype) for grad, t in zip(grads, inputs[:3], strict=True))
    grad_position_key, grad_position_query = (
        query.new_empty(0) if g is None or t is None else g.to(t.dtype) for g, t in zip(folded, inputs[3:], strict=True)
    )
    return grad_query, grad_key, grad_value, grad_position_key, grad_position_query


@_backward.register_fake
def _(
    grad_context: Tensor, saved: Tensor,
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    content = (t.new_empty(_rows_first(t)) for t in (query, key, value))
    tables = (
        query.new_empty(0) if t is None else t.new_empty(t.size(1), t.size(0), t.size(2))
        for t in (position_key, position_query)
    )
    return (*content, *tables)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # no zeros in place of the gradient that the second output never gets
    *tensors, scale, probability, first_head, keep = inputs
    ctx.numbers = (scale, probability, first_head, keep)
    ctx.save_for_backward(output[1], *tensors)


def _gradients(ctx: Any, grad_context: Tensor | None, _grad_saved: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_context is None:
        return (None,) * len(ctx.needs_input_grad)
    saved, *tensors = ctx.saved_tensors
    grads = torch.ops.megadeberta.cpu_attention_backward(grad_context, saved, *tensors, *ctx.numbers)
    content = (grad.transpose(1, 2) for grad in grads[:3])
    tables = (None if t is None else g.transpose(0, 1) for g, t in zip(grads[3:], tensors[3:5], strict=True))
    return (*content, *tables, *(None,) * 12)


torch.library.register_autograd("megadeberta::cpu_attention_forward", _gradients, setup_context=_keep)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _rows_first(tensor: Tensor) -> tuple[int, ...]:
    """The shape of ``[B, N, L, H]`` with rows before heads."""
    batch, heads, rows, size = tensor.shape
    return batch, rows, heads, size


class _Work:
    """The inputs of one call, cut into heads and tiles."""

    def __init__(
        self,
        call: _Call,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_key: Tensor | None,
        position_query: Tensor | None,
    ) -> None:
        self.call = call
        self.precise = _precise(query)
        self._inputs = (query, key, value)
        self.tiles = _tiles(query.size(0), query.size(2), key.size(2))
        self._tables = (position_key, position_query)
        self._scratch = Scratch(self.precise)
        self._index: Tensor | None = None
        if call.rows is not None and call.query_positions is not None:
            self._index = relative_index(call.rows, query_positions=call.query_positions)  # [B, Q, L]
        elif call.rows is not None:
            # Along a row of scores the distance falls, along a column it rises; see SkewedScores.
            self._distance_rows = (call.rows.flip(0), call.rows)
        self.bias: Tensor | None = None
        self.seeing: Tensor | None = None
        if call.mask is not None:
            self.bias, self.seeing = _bias(call.mask, key.size(2), self.precise)

    def head(self, number: int, table_grads: list[Tensor | None] | None = None) -> "_Head":
        """One head.

        Args:
            table_grads: from ``zero_table_gradients``; the head's backward adds to its part of them.
        """
        # Rows of a head are far apart in memory, which costs a matrix product nothing and a copy would.
        query, key, value = (t[:, number].to(self.precise) for t in self._inputs)
        grads = (None, None) if table_grads is None else [None if g is None else g[:, number] for g in table_grads]
        tables = [None if t is None else t[number].to(self.precise) for t in self._tables]
        scores: SkewedScores | GatheredScores | None
        if self.call.rows is None:
            scores = None
        elif self._index is None:
            by_distance = (
                None if table is None else table.index_select(0, rows)
                for table, rows in zip(tables, self._distance_rows, strict=True)
            )
            scores = SkewedScores(*by_distance, table_grads=grads, scratch=self._scratch)
        else:
            scores = GatheredScores(self._index, *tables, table_grads=grads)
        return _Head(self, number, query, key, value, scores)

    def zero_table_gradients(self) -> list[Tensor | None]:
        """``[R, N, H]`` by distance, or ``[P, N, H]`` by table row."""
        distances = None if self._index is not None or self.call.rows is None else self.call.rows.numel()
        return [
            None
            if table is None
            else table.new_zeros(distances or table.size(1), table.size(0), table.size(2), dtype=self.precise)
            for table in self._tables
        ]

    def fold(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """What was added up in ``zero_table_gradients`` -> gradients of the projected tables, ``[P, N, H]``."""
        if self._index is None and self.call.rows is not None:
            by_distance = zip(grads, self._distance_rows, self._tables, strict=True)
            grads = [
                None if grad is None or t is None else _added_rows(grad, rows, t.size(1))
                for grad, rows, t in by_distance
            ]
        return grads


@dataclass(frozen=True)
class _Head:
    """One head of the call."""

    work: _Work
    number: int
    query: Tensor  # [B, Q, H]
    key: Tensor  # [B, L, H]
    value: Tensor  # [B, L, H]
    scores: SkewedScores | GatheredScores | None

    def probabilities(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """Softmax of the scores, ``[G, Q, L]``; hidden keys and rows that see nothing are exactly zero."""
        query, key = self.query[tile.samples, tile.rows], self.key[tile.samples]
        scale = self.work.call.scale
        scores = query.new_empty(*query.shape[:2], key.size(1))
        # The scale goes in with the content product: beta scales the position scores that are there already.
        if self.scores is None:
            torch.baddbmm(scores, query, key.mT, beta=0, alpha=scale, out=scores)
        else:
            self.scores.write(scores, query, key, tile=tile)
            torch.baddbmm(scores, query, key.mT, beta=scale, alpha=scale, out=scores)
        if self.work.bias is None or self.work.seeing is None:
            return torch.softmax(scores, dim=-1, out=out)
        bias, seeing = self.work.bias[tile.samples], self.work.seeing[tile.samples, tile.rows]
        scores += bias if bias.size(1) == 1 else bias[:, tile.rows]
        # exp makes hidden keys exactly zero, but for rows that see nothing: there all are hidden alike.
        return torch.softmax(scores, dim=-1, out=out).mul_(seeing)

    def weights(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """The softmax, negative where dropout drops it, ``[G, Q, L]``: backward reads the sign and draws nothing."""
        probabilities = self.probabilities(tile, out)
        dropout = self.work.call.dropout
        if dropout is None:
            return probabilities
        samples = torch.arange(tile.samples.start, tile.samples.stop)[:, None]
        rows = torch.arange(tile.rows.start, tile.rows.stop)[None, :]
        number = torch.tensor(self.number)
        is_kept = kept(dropout, samples, number, rows=rows, num_columns=self.key.size(1))
        # As numbers: a product of floats with bools costs a CPU more than one of floats.
        return probabilities.mul_(is_kept.to(self.query.dtype).mul_(2).sub_(1))

    def backward(self, tile: Tile, weights: Tensor, grad_context: Tensor, *, into: list[Tensor]) -> None:
        """Add to the gradients ``into`` of query, key and value those of one tile, from what ``weights`` gave."""
        samples, rows = tile.samples, tile.rows
        query, key, value = self.query[samples, rows], self.key[samples], self.value[samples]
        grad_query, grad_key, grad_value = into[0][samples, rows], into[1][samples], into[2][samples]
        # Everything adds to views of whole gradients in place: rows of other heads lie between, nothing is copied.
        grad = torch.bmm(grad_context, value.mT)
        scale = self.work.call.scale * self.work.call.kept_scale
        if self.work.call.dropout is None:
            grad_value.baddbmm_(weights.mT, grad_context)
            # P (dP - sum of P dP) in one pass; the public softmax has no backward of a result that is given.
            grad = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
        else:
            # With D the dropped P: D dP - P sum of D dP.
            dropped = weights.clamp_min(0)
            grad_value.baddbmm_(dropped.mT, grad_context, alpha=self.work.call.kept_scale)
            grad *= dropped
            grad.addcmul_(torch.abs(weights, out=dropped), grad.sum(-1, keepdim=True), value=-1)
        grad_query.baddbmm_(grad, key, alpha=scale)
        grad_key.baddbmm_(grad.mT, query, alpha=scale)
        if self.scores is not None:
            self.scores.backward(grad, query, key, into=(grad_query, grad_key), tile=tile, scale=scale)


def _added_rows(grad: Tensor, rows: Tensor, size: int) -> Tensor:
    """``[size, N, H]`` from ``[R, N, H]`` by adding entry r to row ``rows[r]``."""
    # The backward of an embedding adds whole rows at a time; index_add_ goes element by element.
    flat = torch.ops.aten.embedding_dense_backward(grad.flatten(1), rows, size, -1, False)
    return flat.unflatten(1, grad.shape[1:])


def _tiles(batch: int, num_rows: int, num_keys: int) -> list[Tile]:
    """All (samples, rows) in tiles of about TILE_ELEMENTS scores."""
    height = max(1, min(num_rows, TILE_ELEMENTS // num_keys))
    group = max(1, TILE_ELEMENTS // (height * num_keys))
    return [
        Tile(slice(sample, min(batch, sample + group)), slice(row, min(num_rows, row + height)))
        for sample in range(0, batch, group)
        for row in range(0, num_rows, height)
    ]


def _bias(mask: AttentionMask, num_keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What to add to the scores, ``[B, Q or 1, L]``, and which rows see any key, 0 or 1, ``[B, Q, 1]``."""
    seeing = mask.end > mask.begin
    limited = (mask.begin > 0) | (mask.end < num_keys)
    if mask.real is not None and mask.pairs is None and not bool((limited & seeing).any()):
        visible = mask.real.unsqueeze(1)  # [B, 1, L]: plain padding
        seeing = seeing & visible.any(-1)
    else:
        visible = mask.dense(num_keys)  # [B, Q, L]
        seeing = visible.any(-1)
    bias = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, _HIDDEN)
    return bias, seeing.unsqueeze(-1).to(dtype)
