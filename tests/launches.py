"""What a step launches on a GPU and where it waits for one, counted without one: the operators that torch dispatches.

Counted on the meta device, where tensors have no values, the model takes the code paths of a GPU; DeepSpeed's engine is
counted on a CPU. The number of operators depends neither on the width nor on the device.

A launch is an operator that computes or copies. Views, allocations and what has no elements are none; a fused or
foreach operator is one. An operator of ours counts for what it launches inside, which ``INSIDE`` says where that is
more than its kernel. Attention is left out: its kernels have a count of their own.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATTENTION = "megadeberta::attention"
_ALLOCATES = ("empty", "new_empty", "lift_fresh", "record_stream", "set_", "resize_")
INSIDE = {"megadeberta::residual_norm_backward": 3}
"""The kernel, the second stage of the parameters' gradients and their conversion."""
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


@dataclass
class Counts:
    """Launches by operator, and the places that wait for the device, by file and line."""

    launches: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.launches.total()

    @property
    def our_waits(self) -> Counter[str]:
        """Those of this project's own code."""
        return Counter({place: number for place, number in self.waits.items() if place.startswith("megadeberta/")})


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts of what runs inside the block."""
    counts = Counts()
    with _Reads(counts), _Launches(counts):
        yield counts


class _Launches(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name.startswith(ATTENTION):
            return result
        short = name.split("::")[1]
        if short in _WAITS or _crosses(func, args, kwargs or {}, result):
            self._counts.waits[_place()] += 1
        if _launches(func, short, result):
            self._counts.launches[name] += INSIDE.get(name, 1)
            self._counts.places[_place(), name] += 1
        return result


class _Reads(TorchFunctionMode):
    """Reads of values that torch does not dispatch for a tensor of the CPU."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy"):
            self._counts.waits[_place()] += 1
        return func(*args, **(kwargs or {}))


def _launches(func: Any, short: str, result: Any) -> bool:
    if short.startswith(_ALLOCATES) or short in _WAITS:
        return False
    returns = func._schema.returns
    if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
        return False  # a view
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return not returns or any(tensor.numel() for tensor in tensors)


def _crosses(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether the operator copies between devices while the host waits."""
    short = func._schema.name.split("::")[1]
    if short not in ("_to_copy", "copy_") or kwargs.get("non_blocking"):
        return False
    tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
    return len({tensor.device.type for tensor in tensors}) > 1


def _place() -> str:
    """File and line of the innermost frame that is neither torch's nor this file's."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/torch/" not in path and path != __file__:
            for root in ("/megadeberta/", "/deepspeed/", "/tests/"):
                if root in path:
                    return f"{root[1:]}{path.rpartition(root)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
