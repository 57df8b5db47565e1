"""Attention against loops over the formula, in float64: outputs and all gradients.

Shapes: B batch · N heads · H head size · Lq query rows · Lk keys · P rows of the relative table.
"""

import math

import pytest
import torch
from torch import Tensor

from megadeberta.ops.disentangled_attention import disentangled_attention, masked_softmax
from megadeberta.ops.relative_position import relative_index, rows_by_distance

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


def inputs(
    terms: tuple[str, ...], *, buckets: int = 4, query_positions: Tensor | None = None
) -> tuple[dict[str, Tensor | None], Tensor, Tensor]:
    """Random float64 leaves, the index, and a mask with padding, a causal row and an empty row."""
    generator = torch.Generator().manual_seed(5)
    rows = 2 * (buckets if buckets > 0 else 5)
    length = L if query_positions is None else query_positions.size(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = {"query": leaf(B, N, length, H), "key": leaf(B, N, L, H), "value": leaf(B, N, L, H)}
    leaves["position_key"] = leaf(N, rows, H) if "c2p" in terms else None
    leaves["position_query"] = leaf(N, rows, H) if "p2c" in terms else None
    index = relative_index(rows_by_distance(L, buckets, 5 if buckets < 1 else 8), query_positions=query_positions)
    mask = torch.ones(B, 1, length, L, dtype=torch.bool)
    mask[0, :, :, -2:] = False
    mask[1, :, 1, 2:] = False
    mask[1, :, -1] = False
    return leaves, index, mask


@pytest.mark.parametrize("terms", TERMS, ids="+".join)
@pytest.mark.parametrize("buckets", [4, -1])
@pytest.mark.parametrize("query_positions", [None, torch.tensor([[6, 0, 3], [2, 2, 5]])], ids=["all rows", "some rows"])
def test_output_and_every_gradient_equal_loops_over_the_formula(
    terms: tuple[str, ...], buckets: int, query_positions: Tensor | None
) -> None:
    leaves, index, mask = inputs(terms, buckets=buckets, query_positions=query_positions)
    generator = torch.Generator().manual_seed(6)
    direction = torch.randn(leaves["query"].shape, generator=generator, dtype=torch.float64)
    used = {name: tensor for name, tensor in leaves.items() if tensor is not None}

    fast = disentangled_attention(**leaves, index=index, mask=mask)
    slow = naive(*leaves.values(), index, mask)
    torch.testing.assert_close(fast, slow, **CLOSE)
    gradients = [torch.autograd.grad((out * direction).sum(), list(used.values())) for out in (fast, slow)]
    for name, ours, reference in zip(used, *gradients, strict=True):
        assert reference.abs().max() > 1e-3, name
        torch.testing.assert_close(ours, reference, **CLOSE)


def test_fp32_equals_the_loops_too() -> None:
    leaves, index, mask = inputs(("c2p", "p2c"))
    slow = naive(*leaves.values(), index, mask)
    fast = disentangled_attention(**{name: tensor.float() for name, tensor in leaves.items()}, index=index, mask=mask)
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=1e-5)


def test_the_papers_other_index_for_p2c_gives_another_result() -> None:
    leaves, index, mask = inputs(("c2p", "p2c"))
    ours = disentangled_attention(**leaves, index=index, mask=mask)
    without_c2p = leaves | {"position_key": None}
    p2c = disentangled_attention(**without_c2p, index=index, mask=mask)
    reflected = disentangled_attention(**without_c2p, index=index.mT.contiguous(), mask=mask)
    assert (p2c - reflected).abs().max() > 0.1
    assert (ours - p2c).abs().max() > 0.1


@pytest.mark.parametrize(("terms", "parts"), [((), 1), (("c2p",), 2), (("p2c",), 2), (("c2p", "p2c"), 3)])
def test_the_scale_counts_the_terms_that_are_there(terms: tuple[str, ...], parts: int) -> None:
    leaves, index, _ = inputs(terms)
    zero_positions = {
        name: torch.zeros_like(tensor) if name.startswith("position") and tensor is not None else tensor
        for name, tensor in leaves.items()
    }
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    found = disentangled_attention(**zero_positions, index=index, mask=mask)
    scores = leaves["query"] @ leaves["key"].mT / math.sqrt(H * parts)
    torch.testing.assert_close(found, scores.softmax(-1) @ leaves["value"], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    leaves, index, mask = inputs(("c2p", "p2c"))
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in leaves.items()}
    mask[0] = False
    context = disentangled_attention(**leaves, index=index, mask=mask)
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
    index = relative_index(rows_by_distance(3, 4, 8))
    found = disentangled_attention(
        query,
        torch.zeros_like(query),
        torch.ones_like(query),
        position_key=table,
        position_query=None,
        index=index,
        mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
    )
    assert torch.equal(found, torch.ones_like(found)), "equal scores: the mean of the values"


def test_dropout_keeps_the_mean_and_depends_on_the_generator_alone() -> None:
    leaves, index, mask = inputs(("c2p",))
    torch.manual_seed(1)
    first = disentangled_attention(**leaves, index=index, mask=mask, dropout=0.5)
    torch.manual_seed(1)
    assert torch.equal(first, disentangled_attention(**leaves, index=index, mask=mask, dropout=0.5))
    runs = [disentangled_attention(**leaves, index=index, mask=mask, dropout=0.5) for _ in range(2000)]
    expected = disentangled_attention(**leaves, index=index, mask=mask)
    # The standard error of 2000 draws of order one is 0.03; six of them.
    torch.testing.assert_close(torch.stack(runs).mean(0), expected, rtol=0, atol=0.2)
