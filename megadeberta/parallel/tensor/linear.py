"""Linear layers cut by their outputs (column) or their inputs (row), and the LayerNorm between shards of the tokens.

A column-parallel layer is followed by a row-parallel one, so that a pair communicates once in forward and once in
backward. With sequence parallelism the hidden states outside a pair are divided by tokens.

Shapes: B batch · L length · D inputs · O outputs · T tensor-parallel ranks.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from megadeberta.model.joint_linear import JointLinear, LinearMap, pairs_of
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops.joint_linear import input_gradient, joint_linear, parameter_gradients
from megadeberta.parallel.tensor.collectives import (
    gathered_tokens,
    group_of,
    scattered_sum,
    start_gather_tokens,
    start_scatter_sum,
    start_sum,
    sum_gradients,
    summed,
)


class ColumnParallel(JointLinear):
    """Several linear maps of one input, each cut by its outputs, with one sum of the input's gradient for all.

    In backward the sum is under way while the gradients of the weights are computed. All-reduce over tp in backward;
    with ``sequence_parallel`` all-gather in forward, all-gather and reduce-scatter in backward.
    """

    def __init__(self, *, group: ProcessGroup, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.group = group
        self.sequence_parallel = sequence_parallel

    def forward(
        self, hidden: Tensor, *linears: nn.Linear, table: Tensor | None = None, of_table: Sequence[nn.Linear] = ()
    ) -> tuple[Tensor, ...]:
        """``[B, L, D]``, or ``[B, L/T, D]`` with sequence parallelism, -> ``[B, L, O/T]`` for each of ``linears``; then
        ``[P, D]`` -> ``[P, O/T]`` for each of ``of_table``, which communicates elsewhere."""
        parameters = [parameter for pair in pairs_of(linears) for parameter in pair]
        projected = _ColumnParallel.apply(hidden, self.group, self.sequence_parallel, *parameters)
        if table is None or not of_table:
            return projected
        return (*projected, *joint_linear([table], [pairs_of(of_table)]))


class ColumnParallelLinear(nn.Module):
    """One linear map cut by its outputs; communicates as ``ColumnParallel`` does."""

    def __init__(self, linear: LinearMap, *, group: ProcessGroup, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.group = group
        self.sequence_parallel = sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, L, D]``, or ``[B, L/T, D]`` with sequence parallelism, -> ``[B, L, O/T]``."""
        (output,) = _ColumnParallel.apply(hidden, self.group, self.sequence_parallel, self.weight, self.bias)
        return output


class RowParallelLinear(nn.Module):
    """A linear map cut by its inputs. The bias is whole and added once, after the sum.

    All-reduce over tp in forward; with ``sequence_parallel`` reduce-scatter in forward and all-gather in backward.
    """

    def __init__(self, linear: LinearMap, *, group: ProcessGroup, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.group = group
        self.sequence_parallel = sequence_parallel

    def forward(self, inner: Tensor) -> Tensor:
        """``[B, L, D/T]`` -> ``[B, L, O]``, or ``[B, L/T, O]`` with sequence parallelism."""
        return _RowParallel.apply(inner, self.weight, self.bias, self.group, self.sequence_parallel)


class SequenceParallelNorm(ResidualNorm):
    """The end of a block on a share of the tokens: branch and residual are ``[B, L/T, D]``, and so is the result.

    One all-reduce over tp of the gradients of weight and bias in backward. Runs torch's implementation unless
    ``training.residual_norm`` names another: its results do not depend on the attention backend.
    """

    follows_attention = False

    def __init__(self, norm: ResidualNorm, *, group: ProcessGroup) -> None:
        super().__init__(norm.size, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.implementation = "torch"
        self.group = group

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        weight, bias = sum_gradients(self.weight, self.bias, group=self.group)
        return weight, bias


class _ColumnParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, group: ProcessGroup, sequence_parallel: bool, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.sequence_parallel = group, sequence_parallel
        weights, biases = cast(tuple[Tensor, ...], parameters[::2]), parameters[1::2]
        ctx.has_bias = [bias is not None for bias in biases]
        ctx.save_for_backward(hidden, *weights)
        whole = gathered_tokens(hidden, group) if sequence_parallel else hidden
        return tuple(functional.linear(whole, *pair) for pair in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *weights = ctx.saved_tensors
        if not torch.compiler.is_compiling():
            of_hidden, of_parameters = _column_gradients(
                grads, hidden, weights, ctx.has_bias, ctx.sequence_parallel, ctx.group
            )
            return of_hidden, None, None, *of_parameters
        of_hidden, *found = torch.ops.megadeberta.column_gradients(
            grads, hidden, weights, ctx.has_bias, ctx.sequence_parallel, ctx.group.group_name
        )
        given = iter(found)
        of_parameters = [next(given) if there else None for each in ctx.has_bias for there in (True, each)]
        return of_hidden, None, None, *of_parameters


def _column_gradients(
    grads: Sequence[Tensor],
    hidden: Tensor,
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    sequence_parallel: bool,
    group: ProcessGroup,
) -> tuple[Tensor, list[Tensor | None]]:
    """Of the input, and of the weight and bias of each map in turn."""
    # Only a share of the tokens is kept between the passes, so the others are gathered again.
    gathering = start_gather_tokens(hidden, group) if sequence_parallel else None
    rows = [grad.flatten(0, -2) for grad in grads]
    grad_whole = input_gradient(rows, weights).unflatten(0, grads[0].shape[:-1])
    start = start_scatter_sum if sequence_parallel else start_sum
    summing = start(grad_whole, group)
    whole = hidden if gathering is None else gathering.wait()
    of_parameters = parameter_gradients(rows, whole.flatten(0, -2), weights, has_bias=has_bias)
    return summing.wait(), of_parameters


@torch.library.custom_op("megadeberta::column_gradients", mutates_args=())
def _column_gradients_whole(
    grads: Sequence[Tensor],
    hidden: Tensor,
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    sequence_parallel: bool,
    group: str,
) -> list[Tensor]:
    """As an operator for torch.compile, in which the sum is still under way beside the products; without the biases
    that are not there."""
    of_hidden, of_parameters = _column_gradients(grads, hidden, weights, has_bias, sequence_parallel, group_of(group))
    return [of_hidden, *(gradient for gradient in of_parameters if gradient is not None)]


@_column_gradients_whole.register_fake
def _(
    grads: Sequence[Tensor],
    hidden: Tensor,
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    sequence_parallel: bool,
    group: str,
) -> list[Tensor]:
    of_hidden = grads[0].new_empty(hidden.shape)
    pairs = zip(weights, has_bias, strict=True)
    return [of_hidden, *(w.new_empty(shape) for w, bias in pairs for shape in (w.shape, w.shape[:1])[: 1 + bias])]


class _RowParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inner: Tensor, weight: Tensor, bias: Tensor, group: ProcessGroup, sequence_parallel: bool
    ) -> Tensor:
        ctx.group, ctx.sequence_parallel = group, sequence_parallel
        ctx.save_for_backward(inner, weight)
        whole = scattered_sum if sequence_parallel else summed
        return whole(functional.linear(inner, weight), group).add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inner, weight = ctx.saved_tensors
        if ctx.sequence_parallel:
            # The gradients of all tokens are here anyway, so that of the bias is whole without another sum.
            grad = gathered_tokens(grad, ctx.group)
        rows = grad.flatten(0, -2)
        return grad @ weight, rows.mT @ inner.flatten(0, -2), rows.sum(0), None, None
