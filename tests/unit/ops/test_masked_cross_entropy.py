"""Decoder and cross entropy in one, and the joint gradient of a tied table, against plain autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megadeberta.ops import logits as logit_rules
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.recompute import gelu_then
from megadeberta.ops.tied_table import TiedGradient, lookup

ROWS, WIDTH, VOCABULARY = 7, 5, 11


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    ]
    return leaves, torch.tensor([4, 0, 10, 1, 0, 3, 3])


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T + bias, labels, ignore_index=0, reduction="sum")


@pytest.mark.parametrize("chunk", [2**27, 3 * VOCABULARY, VOCABULARY], ids=["one chunk", "three rows", "one row"])
def test_loss_and_gradients_equal_plain_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_rules, "CHUNK_ELEMENTS", chunk)
    leaves, labels = _inputs()
    loss, correct, _ = masked_cross_entropy(*leaves, labels)
    expected = _plain(*leaves, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    logits = leaves[0] @ leaves[1].T + leaves[2]
    assert correct == ((logits.argmax(-1) == labels) & (labels != 0)).sum()
    for ours, theirs in zip(
        torch.autograd.grad(loss * 3, leaves), torch.autograd.grad(expected * 3, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_no_targets_give_no_loss_and_zero_gradients() -> None:
    leaves, _ = _inputs()
    hidden = leaves[0][:0].detach().requires_grad_()
    loss, correct, _ = masked_cross_entropy(hidden, *leaves[1:], torch.zeros(0, dtype=torch.int64))
    assert loss == 0 and correct == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, leaves[1:]))


def test_fp16_gradients_survive_a_softmax_below_its_range() -> None:
    """1/V of a large vocabulary times a small loss factor is subnormal in fp16 until the loss scale is on it."""
    torch.manual_seed(0)
    hidden = (0.01 * torch.randn(2, 8)).half().requires_grad_()
    weight = (0.01 * torch.randn(60_000, 8)).half().requires_grad_()
    bias, labels = torch.zeros(60_000, dtype=torch.float16), torch.tensor([5, 9])
    loss, *_ = masked_cross_entropy(hidden, weight, bias, labels)
    gradient = torch.autograd.grad(loss * 4096, weight)[0].double()
    double = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact = torch.autograd.grad(_plain(*double, bias.double(), labels) * 4096, double[1])[0]
    others = torch.ones(60_000, dtype=torch.bool)
    others[labels] = False
    # Products of fp16 numbers near 4096 / 60000 * 0.01, a little above its normal range.
    assert ((gradient - exact)[others].norm() / exact[others].norm()) < 5e-3


def test_a_tied_table_gets_the_sum_of_both_gradients_without_the_padding_row() -> None:
    (_, table, bias), labels = _inputs()
    ids = torch.tensor([[2, 0, 2], [7, 10, 0]])

    def loss_of(rows: Tensor, tied: TiedGradient | None) -> Tensor:
        hidden = torch.tanh(rows).flatten(0, 1)
        if tied is None:
            return _plain(hidden, table, bias, labels[:6])
        return masked_cross_entropy(hidden, table, bias, labels[:6], tied=tied)[0]

    tied = TiedGradient(table)
    for _ in range(2):  # a second pass starts from nothing
        joint = torch.autograd.grad(loss_of(lookup(table, ids, padding=0, tied=tied), tied), table)[0]
    expected = torch.autograd.grad(loss_of(functional.embedding(ids, table, padding_idx=0), None), table)[0]
    torch.testing.assert_close(joint, expected, rtol=1e-10, atol=1e-12)
    assert tied.of(table) is tied and tied.of(bias) is None


def test_recomputed_gelu_gives_equal_gradients_and_keeps_one_tensor_less() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4).double()
    inner = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    parameters = (inner, *linear.parameters())
    recomputed, plain = gelu_then(linear, inner), linear(functional.gelu(inner))
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (recomputed, plain))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
