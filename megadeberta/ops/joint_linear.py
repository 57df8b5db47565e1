"""Several linear maps of one or two inputs, with one gradient of each input and of each weight.

Autograd would make a gradient of the input for each map, and one of a weight for each of its uses, and then add them
up; here each product adds to the last one.

Shapes: M rows · D inputs · O outputs of a map.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[Tensor, Tensor | None]
"""Weight ``[O, D]`` and bias ``[O]`` of a linear map."""
Uses = Sequence[tuple[int, int]]
"""For each output, the number of its input and of its pair."""


def joint_linear(inputs: Sequence[Tensor], pairs: Sequence[Sequence[Pair]]) -> tuple[Tensor, ...]:
    """``[..., D]`` -> ``[..., O]`` for each of the ``pairs`` of each input; the inputs may share pairs."""
    unique: list[Pair] = []
    uses: list[tuple[int, int]] = []
    for place, of_input in enumerate(pairs):
        for pair in of_input:
            # By ``is``: an id would be a constant of one layer in a program that torch.compile makes for several.
            number = next((number for number, known in enumerate(unique) if known[0] is pair[0]), len(unique))
            if number == len(unique):
                unique.append(pair)
            uses.append((place, number))
    parameters = [parameter for pair in unique for parameter in pair]
    return _JointLinear.apply(uses, len(inputs), *inputs, *parameters)


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uses: Uses, num_inputs: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs, parameters = cast(tuple[Tensor, ...], tensors[:num_inputs]), tensors[num_inputs:]
        weights, biases = cast(tuple[Tensor, ...], parameters[::2]), parameters[1::2]
        ctx.uses, ctx.num_inputs, ctx.has_bias = uses, num_inputs, [bias is not None for bias in biases]
        ctx.save_for_backward(*inputs, *weights)
        return tuple(functional.linear(inputs[place], weights[pair], biases[pair]) for place, pair in uses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint recomputes what is asked for again
        inputs, weights = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        rows = [grad.flatten(0, -2) for grad in grads]  # [M, O]
        of_inputs = []
        for place, tensor in enumerate(inputs):
            its = [
                (grad, weights[pair]) for grad, (source, pair) in zip(rows, ctx.uses, strict=True) if source == place
            ]
            total = input_gradient([grad for grad, _ in its], [weight for _, weight in its])
            of_inputs.append(total.to(tensor.dtype).view(tensor.shape))
        of_parameters: list[Tensor | None] = []
        for number, (weight, with_bias) in enumerate(zip(weights, ctx.has_bias, strict=True)):
            mine = [
                (grad, inputs[place].flatten(0, -2))
                for grad, (place, pair) in zip(rows, ctx.uses, strict=True)
                if pair == number
            ]
            of_parameters += _pair_gradient(mine, weight, with_bias=with_bias)
        return None, None, *of_inputs, *of_parameters


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
        found += _pair_gradient([(grad, inputs)], weight, with_bias=with_bias)
    return found


def _pair_gradient(uses: Sequence[tuple[Tensor, Tensor]], weight: Tensor, *, with_bias: bool) -> list[Tensor | None]:
    """Of one weight and its bias, from (gradient ``[M, O]``, input ``[M, D]``) of each use."""
    (grad, inputs), *more = uses
    of_weight, of_bias = grad.mT @ inputs.to(grad.dtype), grad.sum(0) if with_bias else None
    for grad, inputs in more:
        of_weight.addmm_(grad.mT, inputs.to(grad.dtype))
        if of_bias is not None:
            of_bias += grad.sum(0)
    return [of_weight.to(weight.dtype), None if of_bias is None else of_bias.to(weight.dtype)]
