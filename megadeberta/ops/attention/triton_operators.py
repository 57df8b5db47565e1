"""Disentangled attention through kernels for a GPU, as operators that torch.compile keeps whole.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) table.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from megadeberta.ops.attention.compile_ahead import kernels_to_launch
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms, score_scale
from megadeberta.ops.attention.triton_call import KernelCall
from megadeberta.ops.attention.triton_reductions import DELTA_ROWS, delta_kernel, fold_kernel
from megadeberta.ops.counter_dropout import CounterDropout

_OptionalTensor = Tensor | None
_FOLD_CHUNK = 32
_MODULES = {"triton": "triton_kernels", "gluon": "gluon_kernels"}
"""Where the kernels of a backend are: forward_kernel, query_kernel, key_kernel and table_kernel."""


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
    """``disentangled_attention`` by the portable Triton kernels; on a GPU, or under the interpreter."""
    return _attention("triton", query, key, value, position, query_positions, mask, dropout)


def gluon_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
) -> Tensor:
    """``disentangled_attention`` by the kernels that read position scores with a shift from shared memory (sm_90).

    What they do not take the portable kernels do (``KernelCall.path``).
    """
    return _attention("gluon", query, key, value, position, query_positions, mask, dropout)


def _attention(
    kernels: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: PositionTerms | None,
    query_positions: Tensor | None,
    mask: AttentionMask | None,
    dropout: CounterDropout | None,
) -> Tensor:
    """See :func:`megadeberta.ops.attention.interface.disentangled_attention`."""
    query, key, value = (_dense_last(t) for t in (query, key, value))
    rows = None
    tables: list[Tensor | None] = [None, None]
    if position is not None and position.count:
        rows = _dense(position.rows, torch.int32)
        tables = [None if table is None else _dense_last(table) for table in (position.key, position.query)]
    begin, end, real = (None, None, None) if mask is None else (mask.begin, mask.end, mask.real)
    begin, end, real = _dense(begin, torch.int32), _dense(end, torch.int32), _dense(real, torch.int8)
    slots = None
    if query_positions is not None:
        query_positions = query_positions.long()
        slots = _first_rows(query_positions, key.size(2))
    context, _ = torch.ops.megadeberta.attention_forward(
        query, key, value, *tables, rows, begin, end, real, slots,
        *((None, None) if dropout is None else (dropout.seed, dropout.samples)),
        score_scale(query.size(-1), position), 0 if dropout is None else dropout.threshold,
        0 if dropout is None else dropout.first_head, kernels,
    )  # fmt: skip
    if query_positions is not None and slots is not None:
        first = slots.gather(1, query_positions).long()
        context = context.gather(1, first[:, :, None, None].expand_as(context))
    return context.transpose(1, 2)


def _dense_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _dense(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _first_rows(positions: Tensor, num_keys: int) -> Tensor:
    """The first row of Q at every position of the keys, ``[B, L]`` int32; Q where there is none."""
    count = positions.size(1)
    numbers = torch.arange(count, dtype=torch.int32, device=positions.device).expand_as(positions)
    none = numbers.new_full((positions.size(0), num_keys), count)
    return none.scatter_reduce(1, positions, numbers, "amin")


def _kernels(name: str) -> ModuleType:
    return kernels_to_launch(_module(name))


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"megadeberta.ops.attention.{_MODULES[name]}")


@torch.library.custom_op("megadeberta::attention_forward", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, position_key: _OptionalTensor, position_query: _OptionalTensor,
    rows: _OptionalTensor, begin: _OptionalTensor, end: _OptionalTensor, real: _OptionalTensor,
    slots: _OptionalTensor, seed: _OptionalTensor, samples: _OptionalTensor,
    scale: float, threshold: int, first_head: int, kernels: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Context ``[B, Q, N, H]`` and log-sum-exp ``[B, N, Q]``."""
    call = KernelCall(
        query, key, value, position_key, position_query, rows, begin, end, real, slots, seed, samples,
        scale, threshold, first_head, kernels,
    )  # fmt: skip
    batch, heads, num_queries, head_size = query.shape
    context = call.new_rows(query)
    lse = query.new_empty(batch, heads, num_queries, dtype=torch.float32)
    plan = call.plan.forward
    _kernels(call.path).forward_kernel[(triton.cdiv(call.num_rows, plan.rows) * batch * heads,)](
        *call.tensors(), context, lse, *call.lookups(), *call.strides(), *call.sizes(), *call.numbers(),
        **call.flags(plan.rows), **plan.options(head_size),
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
    slots: _OptionalTensor, seed: _OptionalTensor, samples: _OptionalTensor,
    scale: float, threshold: int, first_head: int, kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value ``[B, ., N, H]``, and of the tables ``[P, N, H]`` (empty if absent)."""
    call = KernelCall(
        query, key, value, position_key, position_query, rows, begin, end, real, slots, seed, samples,
        scale, threshold, first_head, kernels,
    )  # fmt: skip
    batch, heads, num_queries, head_size = query.shape
    module, plan = _kernels(call.path), call.plan
    grad_out = grad_context.contiguous()
    delta = torch.empty_like(lse)
    delta_kernel[(triton.cdiv(lse.numel(), DELTA_ROWS),)](
        context, grad_out, delta, lse.numel(), heads, num_queries, head_size, plan.query.padded(head_size), DELTA_ROWS
    )
    grads = call.new_rows(query), call.new_dense(key), call.new_dense(value)
    before, after = (*call.tensors(), grad_out), (lse, delta, *call.lookups(), *call.strides())
    module.query_kernel[(triton.cdiv(call.num_rows, plan.query.rows) * batch * heads,)](
        *before, grads[0], *after, *call.sizes(), *call.numbers(),
        **call.flags(plan.query.rows), **plan.query.options(head_size),
    )  # fmt: skip
    module.key_kernel[(triton.cdiv(key.size(2), plan.key.columns) * batch * heads,)](
        *before, *grads[1:], *after, *call.sizes(), *call.numbers(),
        **call.flags(plan.key.rows), **plan.key.options(head_size),
    )  # fmt: skip
    return *grads, *_table_gradients(call, module, before, after)


def _table_gradients(
    call: KernelCall, module: ModuleType, before: tuple[Any, ...], after: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """By table row, ``[P, N, H]``; empty for a table that is absent."""
    tables = (call.position_key, call.position_query)
    folded = [call.query.new_empty(0) if t is None else t.new_empty(t.size(1), t.size(0), t.size(2)) for t in tables]
    found = next((t for t in tables if t is not None), None)
    if found is None:
        return folded[0], folded[1]
    batch, heads, _, head_size = call.query.shape
    plan, num_keys = call.plan.table, call.key.size(2)
    windows = plan.windows(call.num_rows, num_keys)
    shares, samples_each = plan.shares(batch, heads, windows)
    size = (windows, shares, heads, plan.window, head_size)
    parts = [call.query if t is None else t.new_empty(size, dtype=torch.float32) for t in tables]
    module.table_kernel[(windows * shares * heads,)](
        *before, *parts, *after, batch, samples_each, *call.sizes(), windows, *call.numbers(),
        **call.flags(plan.rows), **plan.options(head_size),
    )  # fmt: skip
    fold_kernel[(found.size(1) * heads,)](
        *parts, *folded, call.rows, num_keys, heads, shares, windows, tables[0] is not None, tables[1] is not None,
        head_size, plan.padded(head_size), plan.rows, _FOLD_CHUNK, num_warps=4,
    )  # fmt: skip
    return folded[0], folded[1]


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
    *tensors, scale, threshold, first_head, kernels = inputs
    ctx.numbers = (scale, threshold, first_head, kernels)
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, grad_context: Tensor | None, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_context is None:
        return (None,) * len(ctx.needs_input_grad)
    context, lse, *tensors = ctx.saved_tensors
    grads = torch.ops.megadeberta.attention_backward(grad_context, context, lse, *tensors, *ctx.numbers)
    content = (grad.transpose(1, 2) for grad in grads[:3])
    tables = (None if t is None else g.transpose(0, 1) for g, t in zip(grads[3:], tensors[3:5], strict=True))
    return (*content, *tables, *(None,) * (len(ctx.needs_input_grad) - 5))


torch.library.register_autograd("megadeberta::attention_forward", _gradients, setup_context=_keep)
