"""Disentangled attention: one function over a torch reference, a CPU path and Triton kernels.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the (windowed) relative table.
"""

from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from megadeberta.ops.attention.cpu import cpu_attention
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.reference import reference_attention
from megadeberta.ops.counter_dropout import CounterDropout

Backend = Literal["auto", "reference", "cpu", "cpu-lean", "triton"]


def _triton(*content: Tensor, **options) -> Tensor:
    # Triton is an optional dependency, and importing it takes a second.
    from megadeberta.ops.attention.triton_operators import triton_attention

    return triton_attention(*content, **options)


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


IMPLEMENTATIONS = {
    "reference": reference_attention,
    "cpu": cpu_attention,
    "cpu-lean": partial(cpu_attention, keep_probabilities=False),
    "triton": _triton,
}
"""By the name that ``backend`` asks for; a benchmark adds its own here."""


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: PositionTerms | None = None,
    query_positions: Tensor | None = None,
    mask: AttentionMask | None = None,
    dropout: CounterDropout | None = None,
    backend: Backend = "auto",
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
        query_positions: ``[B, Q]`` positions of the query rows among the keys; None means row i is position i.
        mask: None lets every query see every key.
        dropout: on the attention weights; pass None in evaluation.

    Returns:
        Context ``[B, N, Q, H]``.
    """
    name = resolve_backend(backend, query.device)
    if name == "triton" and mask is not None and mask.pairs is not None:
        name = "reference"  # no tile can tell what a free choice of pairs hides
    return IMPLEMENTATIONS[name](
        query, key, value, position=position, query_positions=query_positions, mask=mask, dropout=dropout
    )


def resolve_backend(backend: Backend, device: torch.device) -> str:
    """The implementation that "auto" means on this device.

    On a GPU that is the reference: a run first tries the kernels there, and then names what it takes
    (``model/kernel_trial.py``).
    """
    if backend != "auto":
        return backend
    return "cpu" if device.type == "cpu" else "reference"
