"""Random calls of the attention op, and how two backends are compared on them.

Shapes: B batch · N heads · H head size · Q query rows · L keys · P rows of the windowed table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask, padding_mask, prefix_mask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout

NAMES = ("context", "query", "key", "value", "position_key", "position_query")


@dataclass(frozen=True)
class Case:
    """One call; ``rows`` is the number of separate query rows a sample, or None for self-attention."""

    batch: int = 2
    heads: int = 2
    length: int = 33
    head_size: int = 32
    terms: str = "c2p|p2c"
    mask: str = "none"
    rows: int | None = None
    dropout: float = 0.0
    buckets: int = 8
    seed: int = 0


def run(case: Case, *, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    """Context and gradients; None for what the case does not have."""
    generator = torch.Generator().manual_seed(case.seed)
    distance_rows = rows_by_distance(case.length, case.buckets, 64)
    distance_rows = distance_rows - distance_rows[0]
    num_queries = case.length if case.rows is None else min(case.rows, case.length)
    table = (case.heads, int(distance_rows[-1]) + 1, case.head_size)
    content = (case.batch, case.heads, case.length, case.head_size)
    shapes = ((case.batch, case.heads, num_queries, case.head_size), content, content, table, table)
    # Drawn in float64 and rounded to bf16, so that every dtype starts from the same numbers.
    inputs = [_drawn(shape, generator).to(dtype).requires_grad_() for shape in shapes]
    mask, positions = _mask(case, generator), None
    if case.rows is not None:
        positions = torch.rand(case.batch, case.length, generator=generator).argsort(1)[:, :num_queries]
        mask = None if mask is None else mask.at_rows(positions)
    query, key, value, position_key, position_query = inputs
    terms = PositionTerms(
        distance_rows, position_key if "c2p" in case.terms else None, position_query if "p2c" in case.terms else None
    )
    context = disentangled_attention(
        query,
        key,
        value,
        position=terms if terms.count else None,
        query_positions=positions,
        mask=mask,
        dropout=_dropout(case) if case.dropout else None,
        backend=backend,
    )
    upstream = _drawn(tuple(context.shape), generator).to(dtype)
    grads = torch.autograd.grad(context, inputs, upstream, allow_unused=True)
    return dict(zip(NAMES, (context.detach(), *grads), strict=True))


def _dropout(case: Case) -> CounterDropout:
    samples = (case.seed + 7 * torch.arange(case.batch)) % 2**31
    return CounterDropout(case.dropout, torch.tensor(2**40 + case.seed), samples)


def largest_error(case: Case, *, backend: str, dtype: torch.dtype) -> tuple[float, str]:
    """Largest relative L2 distance to the reference in float64 over context and gradients, and where it is."""
    expected, actual = run(case, backend="reference"), run(case, backend=backend, dtype=dtype)
    errors = {}
    for name in NAMES:
        assert (expected[name] is None) == (actual[name] is None), name
        if expected[name] is not None:
            # A gradient that is zero but for cancellation (one key) is measured against the size of the inputs.
            size = max(float(expected[name].norm()), 0.1 * expected[name].numel() ** 0.5)
            errors[name] = float((actual[name].double() - expected[name]).norm()) / size
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).double()


def _mask(case: Case, generator: torch.Generator) -> AttentionMask | None:
    """The last sample of a padded batch is padding only; the others have holes anywhere."""
    real = torch.rand(case.batch, case.length, generator=generator) > 0.25
    if case.batch > 1:
        real[-1] = False
    if case.mask == "padding":
        return padding_mask(real)
    if case.mask == "causal":
        return prefix_mask(real, torch.zeros(case.batch, dtype=torch.int32))
    if case.mask == "prefix":
        return prefix_mask(real, torch.randint(case.length + 1, (case.batch,), generator=generator))
    if case.mask == "packed":
        borders = torch.tensor([0, case.length // 3, case.length // 2, max(1, case.length - 2)])
        packed = packed_mask(borders, case.length, causal=case.seed % 2 == 1)
        return AttentionMask(packed.begin.expand(case.batch, -1), packed.end.expand(case.batch, -1))
    return None


def packed_mask(cu_seqlens: Tensor, length: int, *, causal: bool = False) -> AttentionMask:
    """Documents laid end to end in one row; none sees another.

    Args:
        cu_seqlens: ``[D + 1]`` borders, ``0 .. total``, as variable-length attention kernels take them. Tokens from
            ``total`` to ``length`` are padding.
    """
    positions = torch.arange(length, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, positions, right=True)  # 1-based; D + 1 behind the last border
    is_token = positions < cu_seqlens[-1]
    last = cu_seqlens.numel() - 1
    begin = cu_seqlens[(document - 1).clamp(max=last)]
    end = positions + 1 if causal else cu_seqlens[document.clamp(max=last)]
    zero = torch.zeros_like(positions)
    begin, end = torch.where(is_token, begin, zero), torch.where(is_token, end, zero)
    return AttentionMask(begin.to(torch.int32).unsqueeze(0), end.to(torch.int32).unsqueeze(0))
