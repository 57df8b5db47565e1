"""Attention against loops over the formula, in float64: outputs and all gradients.

Shapes: B batch · N heads · H head size · Lq query rows · Lk keys · P rows of the relative table.
"""

import math

import pytest
import torch
from torch import Tensor

from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import AttentionMask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.reference import masked_softmax
from megadeberta.ops.attention.relative_position import relative_index, rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout

B, N, H, L = 2, 2, 4, 7
TERMS = [(), ("c2p",), ("p2c",), ("c2p", "p2c")]
# Two float64 evaluations of sums of a few dozen terms of order one.
CLOSE = {"rtol": 0, "atol": 1e-9}


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_key: Tensor | None,
    position_query: Tensor | None,
    index: Tensor,
    mask: Tensor,
) -> Tensor:
    """Paper equation 4 with one index for both terms, one score after the other."""
    scale = 1 / math.sqrt(query.size(-1) * (1 + (position_key is not None) + (position_query is not None)))
    mask = mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))
    contexts = []
    for b in range(query.size(0)):
        for n in range(query.size(1)):
            for i in range(query.size(2)):
                allowed = [j for j in range(key.size(2)) if mask[b, n, i, j]]
                scores = []
                for j in allowed:
                    row = index[b, i, j] if index.dim() == 3 else index[i, j]
                    score = query[b, n, i] @ key[b, n, j]
                    if position_key is not None:
                        score = score + query[b, n, i] @ position_key[n, row]
                    if position_query is not None:
                        score = score + key[b, n, j] @ position_query[n, row]
                    scores.append(score * scale)
                context = torch.zeros(query.size(-1), dtype=query.dtype)
                if allowed:
                    weights = torch.stack(scores).softmax(0)
                    context = sum((w * value[b, n, j] for w, j in zip(weights, allowed, strict=True)), context)
                contexts.append(context)
    return torch.stack(contexts).view(query.shape)


def attend(leaves: dict[str, Tensor | None], rows: Tensor, mask: AttentionMask | None, **options) -> Tensor:
    """The op on these leaves, by the reference unless the options name another backend."""
    content = (leaves["query"], leaves["key"], leaves["value"])
    position = PositionTerms(rows, leaves["position_key"], leaves["position_query"])
    return disentangled_attention(*content, position=position, mask=mask, **{"backend": "reference"} | options)


def inputs(
    terms: tuple[str, ...], *, buckets: int = 4, num_queries: int = L
) -> tuple[dict[str, Tensor | None], Tensor, AttentionMask]:
    """Random float64 leaves, the rows by distance, and a mask with padding, a causal row and an empty row."""
    generator = torch.Generator().manual_seed(5)
    table_rows, length = 2 * (buckets if buckets > 0 else 5), num_queries

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = {"query": leaf(B, N, length, H), "key": leaf(B, N, L, H), "value": leaf(B, N, L, H)}
    leaves["position_key"] = leaf(N, table_rows, H) if "c2p" in terms else None
    leaves["position_query"] = leaf(N, table_rows, H) if "p2c" in terms else None
    real = torch.ones(B, L, dtype=torch.bool)
    real[0, -2:] = False
    end = torch.full((B, length), L)
    end[1, 1], end[1, -1] = 2, 0
    rows = rows_by_distance(L, buckets, 5 if buckets < 1 else 8)
    return leaves, rows, AttentionMask(torch.zeros_like(end), end, real)


@pytest.mark.parametrize("terms", TERMS, ids="+".join)
@pytest.mark.parametrize("buckets", [4, -1])
@pytest.mark.parametrize("query_positions", [None, torch.tensor([[6, 0, 3], [2, 2, 5]])], ids=["all rows", "some rows"])
def test_output_and_every_gradient_equal_loops_over_the_formula(
    terms: tuple[str, ...], buckets: int, query_positions: Tensor | None
) -> None:
    num_queries = L if query_positions is None else query_positions.size(1)
    leaves, rows, mask = inputs(terms, buckets=buckets, num_queries=num_queries)
    index = relative_index(rows, query_positions=query_positions)
    generator = torch.Generator().manual_seed(6)
    direction = torch.randn(leaves["query"].shape, generator=generator, dtype=torch.float64)
    used = {name: tensor for name, tensor in leaves.items() if tensor is not None}

    fast = attend(leaves, rows, mask, query_positions=query_positions)
    slow = naive(*leaves.values(), index, mask.dense(L).unsqueeze(1))
    torch.testing.assert_close(fast, slow, **CLOSE)
    gradients = [torch.autograd.grad((out * direction).sum(), list(used.values())) for out in (fast, slow)]
    for name, ours, reference in zip(used, *gradients, strict=True):
        assert reference.abs().max() > 1e-3, name
        torch.testing.assert_close(ours, reference, **CLOSE)


def test_fp32_equals_the_loops_too() -> None:
    leaves, rows, mask = inputs(("c2p", "p2c"))
    slow = naive(*leaves.values(), relative_index(rows), mask.dense(L).unsqueeze(1))
    fast = attend({name: tensor.float() for name, tensor in leaves.items()}, rows, mask)
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=1e-5)


def test_the_papers_other_index_for_p2c_gives_another_result() -> None:
    leaves, rows, mask = inputs(("c2p", "p2c"))
    ours = attend(leaves, rows, mask)
    without_c2p = leaves | {"position_key": None}
    p2c = attend(without_c2p, rows, mask)
    reflected = attend(without_c2p, rows.flip(0), mask)
    assert (p2c - reflected).abs().max() > 0.1
    assert (ours - p2c).abs().max() > 0.1


@pytest.mark.parametrize(("terms", "parts"), [((), 1), (("c2p",), 2), (("p2c",), 2), (("c2p", "p2c"), 3)])
def test_the_scale_counts_the_terms_that_are_there(terms: tuple[str, ...], parts: int) -> None:
    leaves, rows, _ = inputs(terms)
    zero_positions = {
        name: torch.zeros_like(tensor) if name.startswith("position") and tensor is not None else tensor
        for name, tensor in leaves.items()
    }
    found = attend(zero_positions, rows, None)
    scores = leaves["query"] @ leaves["key"].mT / math.sqrt(H * parts)
    torch.testing.assert_close(found, scores.softmax(-1) @ leaves["value"], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    leaves, rows, mask = inputs(("c2p", "p2c"))
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in leaves.items()}
    mask.real[0] = False
    context = attend(leaves, rows, mask)
    assert torch.equal(context[0], torch.zeros_like(context[0]))
    assert torch.equal(context[1, :, -1], torch.zeros_like(context[1, :, -1]))
    gradients = torch.autograd.grad(context.sum(), list(leaves.values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    query_gradient, key_gradient = gradients[0], gradients[1]
    assert not query_gradient[0].any() and not key_gradient[0].any()


def test_masked_entries_are_exactly_zero_and_the_rest_sums_to_one() -> None:
    scores = torch.tensor([[1e4, 3.0, -2.0], [5.0, 1.0, 1.0]])
    mask = torch.tensor([[False, True, True], [False, False, False]])
    found = masked_softmax(scores, mask)
    assert found[0, 0] == 0 and not found[1].any()
    assert found[0].sum().item() == pytest.approx(1)
    assert found[0, 1].item() == pytest.approx(1 / (1 + math.exp(-5.0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_stay_finite_where_unscaled_products_overflow_fp16(dtype: torch.dtype) -> None:
    size = 64
    query = torch.full((1, 1, 3, size), 40.0, dtype=dtype)
    table = torch.full((1, 8, size), 40.0, dtype=dtype)
    assert (query[0].float() @ table.float().mT).max() > 65504, "the unscaled product overflows"
    position = PositionTerms(rows_by_distance(3, 4, 8), table, None)
    zeros, ones = torch.zeros_like(query), torch.ones_like(query)
    found = disentangled_attention(query, zeros, ones, position=position, backend="reference")
    assert torch.equal(found, torch.ones_like(found)), "equal scores: the mean of the values"


def test_dropout_keeps_the_mean_and_depends_on_the_seed_alone() -> None:
    leaves, rows, mask = inputs(("c2p",))

    def draw(seed: int) -> Tensor:
        return attend(leaves, rows, mask, dropout=CounterDropout(0.5, torch.tensor(seed), torch.arange(2)))

    assert torch.equal(draw(1), draw(1))
    runs = [draw(seed) for seed in range(2000)]
    expected = attend(leaves, rows, mask)
    # The standard error of 2000 draws of order one is 0.03; six of them.
    torch.testing.assert_close(torch.stack(runs).mean(0), expected, rtol=0, atol=0.2)
