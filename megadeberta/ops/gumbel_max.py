"""Draws from a softmax: ``argmax(logits + Gumbel noise)``, with noise that is a function of (key of the row, id).

The noise is made of operations that IEEE 754 rounds in one way (no library's logarithm, no fused multiply-add), so
every implementation draws the same ids from the same logits, on every device.

Shapes: R rows · V vocabulary, or the ids of one shard of it.
"""

import numpy as np
import torch
from torch import Tensor

from megadeberta.ops.attention.backends import AUTO
from megadeberta.ops.logits import CPU_CODE, TRITON, resolve
from megadeberta.ops.split_mix import hash_words, shift_right

LOG_TERMS = tuple(
    float(np.float32(term))
    for term in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
"""``(log(1 + x) - x + x^2 / 2) / x^3`` for ``1 + x`` between the square roots of 1/2 and 2, highest power first
(Cephes, ``logf.c``)."""
LOG2_HIGH, LOG2_LOW = 0.693359375, float(np.float32(-2.12194440e-4))
"""Their sum is log 2; an exponent times the first one is exact."""
ROOT_HALF = 0x3F3504F3
"""The square root of 1/2 as the bits of an fp32."""
MANTISSA, MANTISSA_BITS = 0x7FFFFF, 23
NEAR_ZERO = 0.25
"""Below this, ``log(1 - u)`` is computed from ``u``, above from ``1 - u``."""
LARGEST = 1.0 - 2.0**-24
_CHUNK_ELEMENTS = 2**22
"""Noise of this many (row, id) pairs exists at a time: 32 MiB for each of the hash's few temporaries."""


def gumbel_max(logits: Tensor, keys: Tensor, *, temperature: float = 1.0, implementation: str = AUTO) -> Tensor:
    """One id for each row ``[...]``, drawn from its softmax. For the arguments see ``best_ids``."""
    return best_ids(logits, keys, temperature=temperature, implementation=implementation)[1]


def best_ids(
    logits: Tensor, keys: Tensor, *, temperature: float = 1.0, first_id: int = 0, implementation: str = AUTO
) -> tuple[Tensor, Tensor]:
    """Largest ``logits / temperature + noise`` of each row and its id, the lowest of equal ones: both ``[...]``.

    Args:
        logits: ``[..., V]``, of the ids from ``first_id`` on.
        keys: int64 ``[...]``; the same key and logits give the same id.
        implementation: a name of ``logits.IMPLEMENTATIONS``, or "auto": the one for the device.
    """
    name = resolve(implementation, logits.device.type)
    rows, flat = logits.reshape(-1, logits.size(-1)), keys.reshape(-1)
    inverse = float(np.float32(1.0 / temperature))
    if name == TRITON and logits.dtype != torch.float64:
        # Triton is an optional dependency, and importing it takes a second.
        from megadeberta.ops.triton_gumbel_max import triton_best_ids

        values, ids = triton_best_ids(rows, flat, inverse, first_id)
    elif name == CPU_CODE:
        from megadeberta.ops.cpu_gumbel_max import cpu_best_ids

        values, ids = cpu_best_ids(rows, flat, inverse, first_id)
    else:
        values, ids = plain_best_ids(rows, flat, inverse, first_id)
    return values.view(keys.shape), ids.view(keys.shape)


def plain_best_ids(logits: Tensor, keys: Tensor, inverse: float, first_id: int) -> tuple[Tensor, Tensor]:
    """The definition, in plain torch: noise for every id.

    Args:
        logits: ``[R, V]``.
        keys: int64 ``[R]``.
        inverse: of the temperature, a number of fp32.
    """
    ids = torch.arange(first_id, first_id + logits.size(1), device=logits.device)
    size = max(1, _CHUNK_ELEMENTS // logits.size(1))
    best = [
        perturbed(chunk, hash_words(chunk_keys.unsqueeze(-1), ids), inverse).max(-1)
        for chunk, chunk_keys in zip(logits.split(size), keys.split(size), strict=True)
    ]
    values, places = (torch.cat(parts) for parts in zip(*best, strict=True))
    return values, places + first_id


def perturbed(logits: Tensor, words: Tensor, inverse: float) -> Tensor:
    """``logits`` times ``inverse``, plus the noise of ``words``; in fp32 or better."""
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return precise * inverse - _log(*_normalised(exponential(words)))


def exponential(words: Tensor) -> Tensor:
    """Standard exponential variables, fp32, from uniform words; -log of one is a Gumbel variable.

    ``-log(1 - u)`` keeps all digits where u is small, and the smallest of V variables decides a draw.
    """
    uniform = (shift_right(words, 11).float() + 0.5) * 2.0**-53  # in (0, 1]
    uniform = uniform.clamp_max(LARGEST)
    rest, exponent = _normalised(1.0 - uniform)
    is_small = uniform < NEAR_ZERO
    return -_log(torch.where(is_small, -uniform, rest), torch.where(is_small, 0.0, exponent))


def _normalised(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` and ``e`` with ``numbers = (1 + x) 2^e`` and ``1 + x`` between the square roots of 1/2 and 2; all fp32."""
    bits = numbers.view(torch.int32) - ROOT_HALF
    rest = ((bits & MANTISSA) + ROOT_HALF).view(torch.float32) - 1.0
    return rest, (bits >> MANTISSA_BITS).float()


def _log(rest: Tensor, exponent: Tensor) -> Tensor:
    """``log((1 + rest) 2^exponent)``, relative error below 2^-22, each step rounded to fp32."""
    square = rest * rest
    series = torch.full_like(rest, LOG_TERMS[0])
    for term in LOG_TERMS[1:]:
        series = series * rest + term
    series = series * rest * square
    series = series + exponent * LOG2_LOW
    series = series - 0.5 * square
    return rest + series + exponent * LOG2_HIGH
