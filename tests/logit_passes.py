"""Counts the bytes that a computation reads and writes of logits over a vocabulary, op by op; works on the meta device.

    with LogitPasses(vocabulary=128_100, width=768) as passes:
        ...
    passes.elementwise, passes.products

Every op counts each operand of that size once and its result once, an operator of ours as often as its module says
(``PASSES``). Products of matrices are counted by themselves: that they read their operands is part of their cost.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megadeberta.ops import triton_gumbel_max, triton_softmax_rows

KERNEL_PASSES = triton_gumbel_max.PASSES | triton_softmax_rows.PASSES
_PRODUCTS = {"aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm", "aten.baddbmm"}
_MAKE_NOTHING = {"aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.detach"}


class LogitPasses(TorchDispatchMode):
    """Bytes by op: ``elementwise_by_op`` and ``products_by_op``."""

    def __init__(self, *, vocabulary: int, width: int) -> None:
        """
        Args:
            width: of the table; what has both in its shape is the table or its gradient.
        """
        super().__init__()
        self._vocabulary, self._width = vocabulary, width
        self.elementwise_by_op: Counter[str] = Counter()
        self.products_by_op: Counter[str] = Counter()

    @property
    def elementwise(self) -> int:
        """Bytes of all passes but those of matrix products."""
        return self.elementwise_by_op.total()

    @property
    def products(self) -> int:
        """Bytes of logits that matrix products read or write; one with a single column counts as a pass."""
        return self.products_by_op.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if func.is_view or name in _MAKE_NOTHING:
            return result
        read, written = (self._large(tensors) for tensors in ((args, kwargs), result))
        if name.startswith("megadeberta.") and read:
            self.elementwise_by_op[name] += sum(KERNEL_PASSES[name]) * read[0].nbytes
            return result
        written += [tensor for tensor in self._large(_mutated(func, args)) if all(tensor is not w for w in written)]
        is_product = name in _PRODUCTS and all(
            1 not in tensor.shape for tensor in tree_leaves(args) if _is_matrix(tensor)
        )
        counter = self.products_by_op if is_product else self.elementwise_by_op
        counter[name] += sum(tensor.nbytes for tensor in read + written)
        return result

    def _large(self, tree: object) -> list[Tensor]:
        return [
            leaf
            for leaf in tree_leaves(tree)
            if isinstance(leaf, Tensor)
            and self._vocabulary in leaf.shape
            and self._width not in leaf.shape
            and leaf.numel() > self._vocabulary
        ]


def _mutated(func: torch._ops.OpOverload, args: tuple[object, ...]) -> list[object]:
    """Arguments that the op writes to."""
    named = zip(func._schema.arguments, args, strict=False)
    return [value for argument, value in named if argument.alias_info is not None and argument.alias_info.is_write]


def _is_matrix(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 2
