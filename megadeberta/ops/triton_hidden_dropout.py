"""Triton kernel of hidden dropout: the words are hashed in the kernel that uses them, forward and backward.

Shapes: R rows · D columns · BD columns of a tile, D padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadeberta.ops.triton_split_mix import hash_words


def triton_hidden_dropout(hidden: Tensor, keys: Tensor, *, site: int, below: int, of_table: bool = False) -> Tensor:
    """``hidden`` ``[..., D]`` without the elements whose byte is below ``below``, the others scaled; on a GPU, or under
    the interpreter.

    Args:
        keys: int64, one word for each row; or, ``of_table``, one word from which the rows' keys are hashed.
    """
    flat = hidden.reshape(-1, hidden.size(-1))
    return torch.ops.megadeberta.hidden_dropout(flat, keys.reshape(-1), site, below, of_table).view(hidden.shape)


@triton.jit
def kept(key, below, BD: tl.constexpr):
    """Which columns of the row of this key survive, ``[BD]``: bit for bit ``hidden_dropout.kept_columns``."""
    words = hash_words(key, tl.arange(0, BD // 8).to(tl.int64))
    low, high = (words & 0xFFFFFFFF).to(tl.int32), (words >> 32).to(tl.int32)
    # Byte k of a word, k = 4 a + 2 b + c: a by the first join, b by the second, c by the third.
    even = tl.join(tl.join(low & 255, high & 255), tl.join((low >> 16) & 255, (high >> 16) & 255))
    odd = tl.join(tl.join((low >> 8) & 255, (high >> 8) & 255), tl.join((low >> 24) & 255, (high >> 24) & 255))
    return tl.reshape(tl.join(even, odd), [BD]) >= below


@triton.jit(do_not_specialize=["site"])
def dropout_kernel(HIDDEN, KEYS, DROPPED, site, size, below, keep_scale, OF_TABLE: tl.constexpr, BD: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BD)
    inside = columns < size
    key = hash_words(tl.load(KEYS) ^ site, row) if OF_TABLE else tl.load(KEYS + row) ^ site
    hidden = tl.load(HIDDEN + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    dropped = tl.where(kept(key, below, BD), hidden * keep_scale, 0.0)
    tl.store(DROPPED + row * size + columns, dropped.to(DROPPED.dtype.element_ty), mask=inside)


@torch.library.custom_op("megadeberta::hidden_dropout", mutates_args=())
def _dropped(hidden: Tensor, keys: Tensor, site: int, below: int, of_table: bool) -> Tensor:
    """``[R, D]``."""
    hidden, dropped = hidden.contiguous(), torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    dropout_kernel[(hidden.size(0),)](
        hidden, keys.contiguous(), dropped, site, hidden.size(1), below, 256.0 / (256 - below),
        OF_TABLE=of_table, **tile(hidden.size(1)),
    )  # fmt: skip
    return dropped


@_dropped.register_fake
def _(hidden: Tensor, keys: Tensor, site: int, below: int, of_table: bool) -> Tensor:
    return torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, keys, *ctx.numbers = inputs
    ctx.save_for_backward(keys)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (keys,) = ctx.saved_tensors
    return torch.ops.megadeberta.hidden_dropout(grad, keys, *ctx.numbers), None, None, None, None


torch.library.register_autograd("megadeberta::hidden_dropout", _gradient, setup_context=_keep)


def tile(size: int) -> dict[str, int]:
    """Launch options for rows of ``size`` columns."""
    padded = triton.next_power_of_2(max(size, 16))
    return {"BD": padded, "num_warps": 4 if padded <= 1024 else 8}
