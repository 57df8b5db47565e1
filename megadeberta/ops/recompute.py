"""Activations that the backward pass recomputes instead of reading what was kept.

All of it works through the hooks of saved tensors, so that the layers on either side may be any module, a sharded one
too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_suspended: ContextVar[bool] = ContextVar("_suspended", default=False)


def suspended_twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first and the second run of a checkpointed layer (``checkpoint(context_fn=...)``): contexts in which
    ``recomputed`` does nothing.

    The checkpoint keeps nothing but the layer's input. Hooks inside it would take precedence over its own, and what
    they hold on to would stay.
    """
    return _suspend(), _suspend()


@contextmanager
def _suspend() -> Iterator[None]:
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


@contextmanager
def recomputed(outputs: Sequence[Tensor], compute: Callable[[], Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Inside the block, nothing that autograd saves of ``outputs`` is kept; the backward pass calls ``compute`` for it.

    Args:
        compute: gives the same values in the same memory layout; called without gradients, once a backward pass.

    Yields:
        The outputs, as a list to which the block may add.
    """
    hidden = list(outputs)
    if torch.compiler.is_compiling() or _suspended.get():
        yield hidden
        return
    source = _Source(compute)

    def pack(saved: Tensor) -> Tensor | tuple[Any, ...]:
        address = saved.untyped_storage().data_ptr()
        number = next((n for n, output in enumerate(hidden) if output.untyped_storage().data_ptr() == address), None)
        if number is None:
            return saved
        source.uses += 1
        return number, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed: Tensor | tuple[Any, ...]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, *place = packed
        return source.take()[number].as_strided(*place)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield hidden
    hidden.clear()


class _Source:
    """Computes tensors when they are first needed, and holds them until their last use."""

    def __init__(self, compute: Callable[[], Sequence[Tensor]]) -> None:
        self._compute = compute
        self._computed: Sequence[Tensor] | None = None
        self._left = 0  # uses that are still to come in this backward pass
        self.uses = 0

    def take(self) -> Sequence[Tensor]:
        if self._computed is None:
            with torch.no_grad():
                self._computed = self._compute()
            self._left = self.uses
        computed = self._computed
        self._left -= 1
        if self._left == 0:
            self._computed = None
        return computed


def gelu_then(
    module: Callable[[Tensor], Tensor], inner: Tensor, *, recompute: Callable[[], Tensor] | None = None
) -> Tensor:
    """``module(gelu(inner))`` that keeps ``inner`` only: the backward pass recomputes the gelu.

    Args:
        recompute: gives ``inner``, which then is not kept either.
    """
    kept = inner.detach()
    give = recompute or (lambda: kept)

    def compute() -> tuple[Tensor, Tensor]:
        source = give()
        return source, functional.gelu(source)

    with recomputed([inner], compute) as hidden:
        activated = functional.gelu(inner)
        hidden.append(activated)
        return module(activated)
