"""torch.compile follows the ops without a break, forward and backward, dropout and masks included."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from megadeberta.ops.attention.backends import BACKENDS
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout
from megadeberta.ops.gumbel_max import gumbel_max
from megadeberta.ops.logits import IMPLEMENTATIONS as LOGITS
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.residual_norm import IMPLEMENTATIONS, residual_layer_norm


def _check(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    torch.compiler.reset()
    results = []
    for each in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        loss = each(*inputs).square().sum()
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    for plain, whole in zip(*results, strict=True):
        torch.testing.assert_close(plain, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_attention_is_one_graph(backend: str) -> None:
    torch.manual_seed(0)
    rows = rows_by_distance(20, 8, 64)
    rows = rows - rows[0]
    content = [torch.randn(2, 1, 20, 32, requires_grad=True) for _ in range(3)]
    table = torch.randn(1, int(rows[-1]) + 1, 32, requires_grad=True)
    real = torch.arange(20) < torch.tensor([[20], [13]])

    def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        return disentangled_attention(
            query,
            key,
            value,
            position=PositionTerms(rows, table, table),
            mask=padding_mask(real),
            dropout=CounterDropout(0.1, torch.tensor(5), torch.arange(2)),
            backend=backend,
        )

    _check(attend, [*content, table])


@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
def test_dropout_residual_and_layer_norm_are_one_graph(implementation: str) -> None:
    torch.manual_seed(0)
    keys = torch.arange(3)

    def norm(branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"eps": 1e-5, "keys": keys, "probability": 0.1, "implementation": implementation}
        return residual_layer_norm(branch, residual, weight, bias, **options)

    _check(norm, [torch.randn(shape, requires_grad=True) for shape in ((3, 24), (3, 24), (24,), (24,))])


@pytest.mark.parametrize("implementation", LOGITS)
def test_loss_over_the_vocabulary_and_draw_are_one_graph(implementation: str) -> None:
    torch.manual_seed(0)
    labels, keys = torch.tensor([3, 0, 9]), torch.arange(3)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found = masked_cross_entropy(hidden, weight, bias, labels, implementation=implementation, keep_logits=True)
        drawn = gumbel_max(found.logits, keys, implementation=implementation)
        return found.loss_sum + (hidden.sum(1) * drawn).sum()

    _check(loss, [torch.randn(shape, requires_grad=True) for shape in ((3, 8), (1500, 8), (1500,))])
