"""Several linear layers that read the same hidden states. An insertion point of tensor parallelism.

Shapes: D hidden size · O outputs of a layer.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from megadeberta.ops.joint_linear import Pair, joint_linear


class LinearMap(Protocol):
    """``nn.Linear``, or what tensor parallelism puts in its place."""

    weight: Tensor
    bias: nn.Parameter

    def __call__(self, hidden: Tensor, /) -> Tensor: ...


class JointLinear(nn.Module):
    """Runs linear layers that another module owns, at once: their weights are read, and they are not called.

    ZeRO-3 gathers a weight that is read outside its own module, the first time when it is read and later in advance
    (DeepSpeed ``runtime/zero/parameter_offload.py`` ``ZeROOrderedDict``).
    """

    def forward(
        self, hidden: Tensor, *linears: nn.Linear, table: Tensor | None = None, of_table: Sequence[nn.Linear] = ()
    ) -> tuple[Tensor, ...]:
        """``[..., D]`` -> ``[..., O]`` for each of ``linears``; then ``[P, D]`` -> ``[P, O]`` for each of ``of_table``,
        which may be the same ones."""
        if table is None or not of_table:
            return joint_linear([hidden], [pairs_of(linears)])
        return joint_linear([hidden, table], [pairs_of(linears), pairs_of(of_table)])


def pairs_of(linears: Sequence[nn.Linear]) -> list[Pair]:
    return [(linear.weight, linear.bias) for linear in linears]
