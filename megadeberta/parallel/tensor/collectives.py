"""Every collective of tensor parallelism, and the operators that autograd sees.

An operator's forward and backward are each other's adjoint: what is copied forward is summed backward. "Tokens" are
the positions of a sequence; with sequence parallelism each rank of the group holds a contiguous share of them.

Shapes: B batch · L length · T ranks of the group · D any width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group


@dataclass(frozen=True)
class Pending:
    """A collective under way."""

    work: distributed.Work
    finish: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """Its result."""
        self.work.wait()
        return self.finish()


def group_of(name: str) -> ProcessGroup:
    """The group that has this name in torch."""
    resolve: Callable[[str], ProcessGroup] = cast(Any, _resolve_process_group)
    return resolve(name)


def start_sum(tensor: Tensor, group: ProcessGroup) -> Pending:
    """Sum over the group, in place where ``tensor`` is contiguous. One all-reduce over tp."""
    tensor = tensor.contiguous()
    return Pending(distributed.all_reduce(tensor, group=group, async_op=True), lambda: tensor)


def start_gather_tokens(share: Tensor, group: ProcessGroup) -> Pending:
    """``[B, L/T, D]`` -> ``[B, L, D]``. One all-gather over tp."""
    ranks = distributed.get_world_size(group)
    parts = share.new_empty(ranks, *share.shape)  # [T, B, L/T, D]
    work = distributed.all_gather_single(parts.flatten(0, 1), share.contiguous(), group=group, async_op=True)
    return Pending(work, lambda: parts.transpose(0, 1).flatten(1, 2))


def start_scatter_sum(whole: Tensor, group: ProcessGroup) -> Pending:
    """Sum ``[B, L, D]`` over the group; each rank gets its tokens, ``[B, L/T, D]``. One reduce-scatter over tp."""
    ranks = distributed.get_world_size(group)
    parts = whole.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()  # [T, B, L/T, D]
    share = torch.empty_like(parts[0])
    work = distributed.reduce_scatter_single(share, parts.flatten(0, 1), group=group, async_op=True)
    return Pending(work, lambda: share)


def summed(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """``start_sum`` and its end, for a tensor that nothing else reads. One all-reduce over tp."""
    if torch.compiler.is_compiling():
        return torch.ops.megadeberta.tensor_sum(tensor, group.group_name)
    return start_sum(tensor, group).wait()


def gathered_tokens(share: Tensor, group: ProcessGroup) -> Tensor:
    """``start_gather_tokens`` and its end. One all-gather over tp."""
    if torch.compiler.is_compiling():
        return torch.ops.megadeberta.gather_tokens(share, distributed.get_world_size(group), group.group_name)
    return start_gather_tokens(share, group).wait()


def scattered_sum(whole: Tensor, group: ProcessGroup) -> Tensor:
    """``start_scatter_sum`` and its end. One reduce-scatter over tp."""
    if torch.compiler.is_compiling():
        return torch.ops.megadeberta.scatter_sum(whole, distributed.get_world_size(group), group.group_name)
    return start_scatter_sum(whole, group).wait()


def largest(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Maximum over the group, in place. One all-reduce over tp."""
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX, group=group)
    return tensor


def own_tokens(whole: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's tokens of ``[B, L, D]``: ``[B, L/T, D]``. No collective."""
    return whole.chunk(distributed.get_world_size(group), dim=1)[distributed.get_rank(group)]


def sum_backward(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """``tensor`` as it is, on its way into shards. All-reduce over tp in backward (Megatron's f)."""
    return _SumBackward.apply(tensor, group)


def sum_forward(partial: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of what the shards computed. All-reduce over tp in forward (Megatron's g)."""
    return _SumForward.apply(partial, group)


def gather_tokens(share: Tensor, group: ProcessGroup) -> Tensor:
    """``[B, L/T, D]`` -> ``[B, L, D]``, for what every rank then computes alike. All-gather over tp in forward; the
    gradients of all ranks are the same, so each keeps its tokens of it."""
    return _GatherTokens.apply(share, group)


def take_tokens(whole: Tensor, group: ProcessGroup) -> Tensor:
    """``[B, L, D]`` that all ranks hold alike -> this rank's ``[B, L/T, D]``. All-gather over tp in backward."""
    return _TakeTokens.apply(whole, group)


def sum_gradients(*parameters: Tensor, group: ProcessGroup) -> tuple[Tensor, ...]:
    """Parameters as they are, used for a share of the tokens. One all-reduce of all gradients over tp in backward."""
    return _SumGradients.apply(group, *parameters)


# The same as operators, which torch.compile keeps whole: it follows no collective that is started here and ends there.
# A group goes in by its name.


@torch.library.custom_op("megadeberta::tensor_sum", mutates_args=())
def _tensor_sum(tensor: Tensor, group: str) -> Tensor:
    return start_sum(tensor.clone(memory_format=torch.contiguous_format), group_of(group)).wait()


@_tensor_sum.register_fake
def _(tensor: Tensor, group: str) -> Tensor:
    return tensor.new_empty(tensor.shape)


@torch.library.custom_op("megadeberta::gather_tokens", mutates_args=())
def _gather_tokens(share: Tensor, ranks: int, group: str) -> Tensor:
    return start_gather_tokens(share, group_of(group)).wait().contiguous()


@_gather_tokens.register_fake
def _(share: Tensor, ranks: int, group: str) -> Tensor:
    return share.new_empty(share.size(0), ranks * share.size(1), *share.shape[2:])


@torch.library.custom_op("megadeberta::scatter_sum", mutates_args=())
def _scatter_sum(whole: Tensor, ranks: int, group: str) -> Tensor:
    return start_scatter_sum(whole, group_of(group)).wait()


@_scatter_sum.register_fake
def _(whole: Tensor, ranks: int, group: str) -> Tensor:
    return whole.new_empty(whole.size(0), whole.size(1) // ranks, *whole.shape[2:])


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return start_sum(grad.clone(memory_format=torch.contiguous_format), ctx.group).wait(), None


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: ProcessGroup) -> Tensor:
        return start_sum(partial.clone(memory_format=torch.contiguous_format), group).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return start_gather_tokens(share, group).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return own_tokens(grad, ctx.group), None


class _TakeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return own_tokens(whole, group).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return start_gather_tokens(grad, ctx.group).wait(), None


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat = summed(torch.cat([grad.flatten() for grad in grads]), ctx.group)
        parts = flat.split([grad.numel() for grad in grads])
        return None, *(part.view_as(grad) for part, grad in zip(parts, grads, strict=True))
