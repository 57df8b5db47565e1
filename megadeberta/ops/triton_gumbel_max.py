"""The draw as a Triton kernel, an operator that torch.compile keeps whole: one pass over the logits, nothing but ids
and their sums written.

It computes what ``gumbel_max`` defines step by step, compiled without fused multiply-add, so its draws are the same to
the bit. A logit that is no number never wins here.

Shapes: R rows · V ids · B ids of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadeberta.ops.gumbel_max import (
    LARGEST,
    LOG2_HIGH,
    LOG2_LOW,
    LOG_TERMS,
    MANTISSA,
    MANTISSA_BITS,
    NEAR_ZERO,
    ROOT_HALF,
)
from megadeberta.ops.triton_softmax_rows import alignment
from megadeberta.ops.triton_split_mix import hash_words

PASSES = {"megadeberta.triton_best_ids": (1, 0)}
"""How often each operator reads and writes all logits."""
OPTIONS = {"BLOCK": 1024, "num_warps": 4, "enable_fp_fusion": False}

_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8 = (tl.constexpr(term) for term in LOG_TERMS)
_HIGH, _LOW = tl.constexpr(LOG2_HIGH), tl.constexpr(LOG2_LOW)
_ROOT_HALF, _MANTISSA, _BITS = tl.constexpr(ROOT_HALF), tl.constexpr(MANTISSA), tl.constexpr(MANTISSA_BITS)
_NEAR_ZERO, _LARGEST, _UNIT = tl.constexpr(NEAR_ZERO), tl.constexpr(LARGEST), tl.constexpr(2.0**-53)


@triton.jit
def _normalised(numbers):
    bits = numbers.to(tl.int32, bitcast=True) - _ROOT_HALF
    rest = ((bits & _MANTISSA) + _ROOT_HALF).to(tl.float32, bitcast=True) - 1.0
    return rest, (bits >> _BITS).to(tl.float32)


@triton.jit
def _log(rest, exponent):
    square = rest * rest
    series = _T0 * rest + _T1
    series = series * rest + _T2
    series = series * rest + _T3
    series = series * rest + _T4
    series = series * rest + _T5
    series = series * rest + _T6
    series = series * rest + _T7
    series = series * rest + _T8
    series = series * rest * square
    series = series + exponent * _LOW
    series = series - 0.5 * square
    return rest + series + exponent * _HIGH


@triton.jit
def _exponential(words):
    uniform = (((words >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float32) + 0.5) * _UNIT
    uniform = tl.minimum(uniform, _LARGEST)
    rest, exponent = _normalised(1.0 - uniform)
    is_small = uniform < _NEAR_ZERO
    return -_log(tl.where(is_small, -uniform, rest), tl.where(is_small, 0.0, exponent))


@triton.jit
def draw_kernel(LOGITS, KEYS, VALUES, IDS, inverse, first_id, size, stride, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The best id of one row; of equal ones the lowest."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.multiple_of(row * stride, ALIGNED)
    size = tl.multiple_of(size, ALIGNED)
    key = tl.load(KEYS + row)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK], tl.int32)
    for first in range(0, size, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < size
        logits = tl.load(LOGITS + start + columns, mask=inside, other=0.0).to(tl.float32)
        words = hash_words(key, first_id + columns.to(tl.int64))
        rest, exponent = _normalised(_exponential(words))
        value = tl.where(inside, logits * inverse - _log(rest, exponent), float("-inf"))
        is_better = value > best
        best = tl.where(is_better, value, best)
        place = tl.where(is_better, columns, place)
    value = tl.max(best, 0)
    lowest = tl.min(tl.where(best == value, place, size), 0)
    tl.store(VALUES + row, value)
    tl.store(IDS + row, first_id + lowest.to(tl.int64))


@torch.library.custom_op("megadeberta::triton_best_ids", mutates_args=())
def triton_best_ids(logits: Tensor, keys: Tensor, inverse: float, first_id: int) -> tuple[Tensor, Tensor]:
    """As ``gumbel_max.plain_best_ids``."""
    values, ids = logits.new_empty(logits.size(0), dtype=torch.float32), torch.empty_like(keys)
    if logits.size(0):
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        draw_kernel[(logits.size(0),)](
            logits, keys.contiguous(), values, ids, inverse, first_id, logits.size(1), logits.stride(0),
            ALIGNED=alignment(logits), **OPTIONS,
        )  # fmt: skip
    return values, ids


@triton_best_ids.register_fake
def _(logits: Tensor, keys: Tensor, inverse: float, first_id: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.size(0), dtype=torch.float32), torch.empty_like(keys)
