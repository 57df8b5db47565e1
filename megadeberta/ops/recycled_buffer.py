"""Large CPU tensors that are written where the last one of their kind was.

A large block that the C library hands out is fresh from the kernel, and each of its pages faults when it is first
written: 0.14 s for the 394 MB gradient of a word table, two thirds of the product that fills it. On a GPU, torch's
allocator keeps freed blocks itself.
"""

import math
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor


class RecycledBuffer:
    """One block of memory. A tensor takes it, and it returns when nothing uses the tensor's storage any more.

    The storage owns a numpy view of the block and drops it with the last view that autograd, an optimizer or a caller
    keeps; so the gradient of an earlier micro batch is never written over. While the block is taken, the next tensor
    gets a fresh one.
    """

    def __init__(self) -> None:
        self._returned: deque[np.ndarray] = deque(maxlen=1)

    def take(self, *shape: int, like: Tensor) -> Tensor | None:
        """An uninitialised tensor of the dtype of ``like`` to pass as ``out=``.

        None, which lets torch allocate as always: for nothing, on a GPU, under torch.compile, and under autocast, where
        ``out=`` would fix the dtype.
        """
        if 0 in shape or like.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return None
        size = math.prod(shape) * like.element_size()
        block = self._block(size)
        # The tensor's storage holds the view, not the block: the end of the view returns the block, except at the
        # interpreter's shutdown.
        view = block[:size]
        weakref.finalize(view, self._returned.append, block).atexit = False
        return torch.from_numpy(view).view(like.dtype).view(shape)

    def _block(self, size: int) -> np.ndarray:
        """At least ``size`` bytes, and not many times more."""
        with suppress(IndexError):
            block = self._returned.pop()
            if size <= block.size <= 2 * size:
                return block
        return torch.empty(size, dtype=torch.uint8).numpy()  # torch's, for its alignment
