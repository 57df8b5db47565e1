"""Activations that are recomputed in backward: same gradients, computed once, not kept.

Shapes: B rows · D columns.
"""

import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.ops.recompute import gelu_then, recomputed


class _Counted(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(hidden)


def _gradients(result: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.square().sum(), sources, retain_graph=True)


def test_feed_forward_keeps_neither_product_nor_gelu_and_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    up, down, hidden = _Counted(6, 20), nn.Linear(20, 6), torch.randn(5, 6, requires_grad=True)
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    sources = (hidden, *up.parameters(), *down.parameters())
    expected = _gradients(down(functional.gelu(up(hidden))), *sources)
    up.calls = 0
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = gelu_then(down, up(hidden), recompute=lambda: up(hidden.detach()))
    assert 5 * 20 not in kept
    for _ in range(2):  # a graph that is kept can be run backward again
        found = _gradients(result, *sources)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert up.calls == 3  # forward, and once for each backward pass


def test_what_is_recomputed_is_so_once_for_all_views_and_let_go_after_the_last() -> None:
    torch.manual_seed(0)
    source = torch.randn(4, 3, requires_grad=True)
    products: list[weakref.ref[Tensor]] = []

    def compute() -> list[Tensor]:
        product = source.detach() * 2
        products.append(weakref.ref(product))
        return [product]

    def two_views(doubled: Tensor) -> Tensor:
        return doubled.T.sin().sum() + doubled[1:2].square().sum()

    doubled = source * 2
    with recomputed([doubled], compute):
        result = two_views(doubled)
    del doubled
    (found,) = torch.autograd.grad(result, source)
    assert torch.equal(found, torch.autograd.grad(two_views(source * 2), source)[0])
    assert len(products) == 1 and products[0]() is None


def test_an_inner_tensor_that_is_kept_is_not_recomputed() -> None:
    torch.manual_seed(0)
    up, down, hidden = _Counted(6, 20), nn.Linear(20, 6), torch.randn(5, 6, requires_grad=True)
    (found,) = _gradients(gelu_then(down, up(hidden)), hidden)
    assert up.calls == 1
    assert torch.equal(found, _gradients(down(functional.gelu(up(hidden))), hidden)[0])
