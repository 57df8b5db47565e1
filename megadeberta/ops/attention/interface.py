"""Disentangled attention: one function over the backends of ``backends.py``.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) relative table.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megadeberta.ops.attention.backends import AUTO, BACKENDS, REFERENCE, resolve
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.counter_dropout import CounterDropout

_LOADED: dict[str, Callable[..., Tensor]] = {}
"""Implementations by the name of their backend, so far as they were called."""


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None = None,
    query_positions: Tensor | None = None,
    mask: AttentionMask | None = None,
    dropout: CounterDropout | None = None,
    backend: str = AUTO,
) -> Tensor:
    """Content and position attention with one scale for all terms (paper eq. 4, index as in the released code).

    ``S[i, j] = (Q_i · K_j + Q_i · K_r[row(i - j)] + K_j · Q_r[row(i - j)]) / sqrt(H * s)`` with ``s`` = 1 + the number
    of position terms given. Both terms use the same row: the paper's ``delta(j, i)`` for the third one is in no
    released implementation, and published weights need the shared index. Every backend gives the same result, dropout
    included, up to rounding.

    Args:
        query: ``[B, N, Q, H]``, not scaled.
        key, value: ``[B, N, L, H]``.
        position: the projected relative table, or None for plain attention.
        query_positions: ``[B, Q]`` positions of the query rows among the keys; None means row i is position i. Rows of
            a sample at one position have to be copies, with one query and one mask: kernels for a GPU compute the first
            of them, dropout included, for all.
        mask: None lets every query see every key.
        dropout: on the attention weights; pass None in evaluation.
        backend: a name of ``BACKENDS``, or "auto" for the fastest that needs no trial first.

    Returns:
        Context ``[B, N, Q, H]``.
    """
    has_pairs = mask is not None and mask.pairs is not None
    name = _choose(backend, query.device.type, has_pairs)
    return _LOADED[name](
        query, key, value, position=position, query_positions=query_positions, mask=mask, dropout=dropout
    )


@torch.compiler.assume_constant_result
def _choose(setting: str, device_type: str, has_pairs: bool) -> str:
    """The name of the backend for a call, after which ``_LOADED`` has its implementation.

    torch.compile cannot trace an import: it runs this once while it traces, and takes the name as a constant.
    """
    backend = resolve(setting, device_type)
    if has_pairs and not backend.takes_pairs:
        backend = BACKENDS[REFERENCE]
    _LOADED[backend.name] = backend.load()
    return backend.name
