"""Disentangled attention through the Triton kernels, as operators that torch.compile keeps whole.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) table.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms, score_scale
from megadeberta.ops.attention.triton_kernels import forward_kernel, key_kernel, query_kernel, table_kernel
from megadeberta.ops.attention.triton_plan import TilePlan, plan_tiles
from megadeberta.ops.counter_dropout import ROUNDS, CounterDropout

_OptionalTensor = Tensor | None


def triton_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
) -> Tensor:
    """See :func:`megadeberta.ops.attention.interface.disentangled_attention`; on a GPU, or under the interpreter."""
    query, key, value = (_dense_last(t) for t in (query, key, value))
    rows = None
    tables: list[Tensor | None] = [None, None]
    if position is not None and position.count:
        rows = position.rows.to(torch.int32)
        tables = [None if table is None else _dense_last(table) for table in (position.key, position.query)]
    begin, end, real = (None, None, None) if mask is None else (mask.begin, mask.end, mask.real)
    context, _ = torch.ops.megadeberta.attention_forward(
        query,
        key,
        value,
        *tables,
        rows,
        _int32(begin),
        _int32(end),
        None if real is None else real.to(torch.int8).contiguous(),
        _int32(query_positions),
        None if dropout is None else torch.cat([dropout.seed.view(1), dropout.samples]),
        score_scale(query.size(-1), position),
        0 if dropout is None else dropout.threshold,
        0 if dropout is None else dropout.first_head,
    )
    return context.transpose(1, 2)


def _dense_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _int32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.int32).contiguous()


@torch.library.custom_op("megadeberta::attention_forward", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    rows: _OptionalTensor, begin: _OptionalTensor, end: _OptionalTensor, real: _OptionalTensor,
    positions: _OptionalTensor, draws: _OptionalTensor,
    scale: float, threshold: int, first_head: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Context ``[B, Q, N, H]`` and log-sum-exp ``[B, N, Q]``."""
    batch, heads, num_queries, head_size = query.shape
    context = query.new_empty(batch, num_queries, heads, head_size)
    lse = query.new_empty(batch, heads, num_queries, dtype=torch.float32)
    inputs = _Inputs(query, key, value, position_key, position_query, rows, begin, end, real, positions, draws)
    plan = plan_tiles(head_size)
    out = context.transpose(1, 2)
    forward_kernel[(triton.cdiv(num_queries, plan.rows), batch * heads)](
        *inputs.tensors(), out, lse, *inputs.lookups(),
        *(t.stride()[:3] for t in (query, key, value, out)), *inputs.table_strides(),
        heads, num_queries, key.size(2), inputs.center, head_size, scale,
        first_head, threshold, 256.0 / (256 - threshold), **inputs.flags(), **plan.options(),
    )  # fmt: skip
    return context, lse


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, heads, num_queries, head_size = query.shape
    context = query.new_empty(batch, num_queries, heads, head_size)
    return context, query.new_empty(batch, heads, num_queries, dtype=torch.float32)


@torch.library.custom_op("megadeberta::attention_backward", mutates_args=())
def _backward(
    grad_context: Tensor, context: Tensor, lse: Tensor,
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    rows: _OptionalTensor, begin: _OptionalTensor, end: _OptionalTensor, real: _OptionalTensor,
    positions: _OptionalTensor, draws: _OptionalTensor,
    scale: float, threshold: int, first_head: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value ``[B, ., N, H]``, and of the tables ``[P, N, H]`` (empty if absent)."""
    batch, heads, num_queries, head_size = query.shape
    num_keys = key.size(2)
    inputs = _Inputs(query, key, value, position_key, position_query, rows, begin, end, real, positions, draws)
    plan = plan_tiles(head_size)
    grad_context = grad_context.contiguous()
    delta = (grad_context.float() * context.float()).sum(-1).transpose(1, 2).contiguous()  # [B, N, Q]
    grad_out = grad_context.transpose(1, 2)
    grads = [t.new_empty(batch, t.size(2), heads, head_size) for t in (query, key, value)]
    by_head = [grad.transpose(1, 2) for grad in grads]
    content = tuple(t.stride()[:3] for t in (query, key, value, grad_out))
    lookups = (lse, delta, *inputs.lookups())
    sizes = (heads, num_queries, num_keys)
    rest = (inputs.center, head_size, scale, first_head, threshold, 256.0 / (256 - threshold))
    query_kernel[(triton.cdiv(num_queries, plan.rows), batch * heads)](
        *inputs.tensors(), grad_out, by_head[0], *lookups, *content, by_head[0].stride()[:3],
        *inputs.table_strides(), *sizes, *rest, **inputs.flags(), **plan.options(),
    )  # fmt: skip
    key_kernel[(triton.cdiv(num_keys, plan.columns), batch * heads)](
        *inputs.tensors(), grad_out, by_head[1], by_head[2], *lookups, *content,
        by_head[1].stride()[:3], by_head[2].stride()[:3],
        *inputs.table_strides(), *sizes, *rest, **inputs.flags(), **plan.options(),
    )  # fmt: skip
    tables = [query.new_empty(0), query.new_empty(0)]
    if rows is not None:
        first, count = plan.windows(num_queries, num_keys, separate_rows=positions is not None)
        shares, samples_each = plan.shares(batch, heads, count)
        given = (position_key, position_query)
        parts = [None if t is None else lse.new_empty(shares, heads, count, plan.window, head_size) for t in given]
        stand_in = lse
        table_kernel[(count, heads, shares)](
            *inputs.tensors(), grad_out, *(stand_in if part is None else part for part in parts), *lookups, *content,
            *inputs.table_strides(), batch, samples_each, *sizes, first, count, *rest,
            **inputs.flags(), **plan.options(),
        )  # fmt: skip
        to_rows = _distances_to_rows(plan, rows, first, count, positions is not None)
        for number, (part, table) in enumerate(zip(parts, given, strict=True)):
            if part is not None and table is not None:
                select = torch.zeros(table.size(1), to_rows.numel(), device=table.device)
                select[to_rows, torch.arange(to_rows.numel(), device=table.device)] = 1.0
                # A product with zeros and ones: unlike index_add_, it adds in the same order every time.
                folded = select @ part.sum(0).flatten(1, 2)  # [N, P, H]
                tables[number] = folded.transpose(0, 1).to(table.dtype).contiguous()
    return grads[0], grads[1], grads[2], tables[0], tables[1]


@_backward.register_fake
def _(
    grad_context: Tensor, context: Tensor, lse: Tensor,
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    content = (t.new_empty(t.size(0), t.size(2), t.size(1), t.size(3)) for t in (query, key, value))
    tables = (
        query.new_empty(0) if t is None else t.new_empty(t.size(1), t.size(0), t.size(2))
        for t in (position_key, position_query)
    )
    return (*content, *tables)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # no zeros in place of the gradient that the second output never gets
    *tensors, scale, threshold, first_head = inputs
    ctx.numbers = (scale, threshold, first_head)
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, grad_context: Tensor | None, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_context is None:
        return (None,) * len(ctx.needs_input_grad)
    context, lse, *tensors = ctx.saved_tensors
    grads = torch.ops.megadeberta.attention_backward(grad_context, context, lse, *tensors, *ctx.numbers)
    content = (grad.transpose(1, 2) for grad in grads[:3])
    tables = (None if t is None else g.transpose(0, 1) for g, t in zip(grads[3:], tensors[3:5], strict=True))
    return (*content, *tables, *(None,) * 9)


torch.library.register_autograd("megadeberta::attention_forward", _gradients, setup_context=_keep)


@dataclass(frozen=True)
class _Inputs:
    """The tensors of a call in the order of the kernels; absent ones are replaced by a tensor that is never read."""

    query: Tensor
    key: Tensor
    value: Tensor
    position_key: Tensor | None
    position_query: Tensor | None
    rows: Tensor | None
    begin: Tensor | None
    end: Tensor | None
    real: Tensor | None
    positions: Tensor | None
    draws: Tensor | None  # [1 + B]: the seed, then the number of each sample

    @property
    def center(self) -> int:
        return 0 if self.rows is None else self.rows.numel() // 2

    def tensors(self) -> tuple[Tensor, ...]:
        tables = (self.query if t is None else t for t in (self.position_key, self.position_query))
        return self.query, self.key, self.value, *tables

    def lookups(self) -> tuple[Tensor, ...]:
        given = (self.rows, self.begin, self.end, self.real, self.positions, self.draws)
        return tuple(self.query if t is None else t for t in given)

    def table_strides(self) -> tuple[tuple[int, ...], ...]:
        return tuple((0, 0) if t is None else t.stride()[:2] for t in (self.position_key, self.position_query))

    def flags(self) -> dict[str, Any]:
        return {
            "C2P": self.position_key is not None,
            "P2C": self.position_query is not None,
            "HAS_MASK": self.begin is not None,
            "HAS_REAL": self.real is not None,
            "HAS_POSITIONS": self.positions is not None,
            "DROPOUT": self.draws is not None,
            "ROUNDS": ROUNDS,
        }


def _distances_to_rows(plan: TilePlan, rows: Tensor, first: int, count: int, separate_rows: bool) -> Tensor:
    """Table row of every (window, distance) of the table kernel, ``[count * WD]``."""
    window = torch.arange(count, device=rows.device) + first
    start = window * plan.window if separate_rows else window * plan.rows - plan.columns + 1
    distance = start.unsqueeze(1) + torch.arange(plan.window, device=rows.device)
    center = rows.numel() // 2
    return rows[distance.clamp(-center, center) + center].flatten().long()
