"""Several linear maps of one input, with one gradient of that input for all of them.

Autograd would make a gradient of the input for each map and then add them up; here each product adds to the last one.

Shapes: M rows · D inputs · O outputs of a map.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[Tensor, Tensor | None]
"""Weight ``[O, D]`` and bias ``[O]`` of a linear map."""


def joint_linear(hidden: Tensor, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
    """``[..., D]`` -> ``[..., O]`` for each of ``pairs``."""
    return _JointLinear.apply(hidden, *(parameter for pair in pairs for parameter in pair))


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = cast(tuple[Tensor, ...], parameters[::2]), parameters[1::2]
        ctx.has_bias = [bias is not None for bias in biases]
        ctx.save_for_backward(hidden, *weights)
        return tuple(functional.linear(hidden, *pair) for pair in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *weights = ctx.saved_tensors
        rows = [grad.flatten(0, -2) for grad in grads]  # [M, O]
        grad_hidden = input_gradient(rows, weights).to(hidden.dtype).view(hidden.shape)
        return grad_hidden, *parameter_gradients(rows, hidden.flatten(0, -2), weights, has_bias=ctx.has_bias)


def input_gradient(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """``[M, D]``, from the gradients ``rows`` of the outputs, each ``[M, O]``."""
    total = rows[0] @ weights[0].to(rows[0].dtype)
    for grad, weight in zip(rows[1:], weights[1:], strict=True):
        total.addmm_(grad, weight.to(grad.dtype))
    return total


def parameter_gradients(
    rows: Sequence[Tensor], inputs: Tensor, weights: Sequence[Tensor], *, has_bias: Sequence[bool]
) -> list[Tensor | None]:
    """Of the weight and bias of each map in turn; under autocast ``rows`` have another dtype than the parameters."""
    found: list[Tensor | None] = []
    for grad, weight, with_bias in zip(rows, weights, has_bias, strict=True):
        found.append((grad.mT @ inputs.to(grad.dtype)).to(weight.dtype))
        found.append(grad.sum(0).to(weight.dtype) if with_bias else None)
    return found
