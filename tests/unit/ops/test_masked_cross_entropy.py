"""Decoder and cross entropy in one, and the joint gradient of a tied table, against plain autograd."""

from collections.abc import Callable

import pytest
import torch
from stopwatch import KeptTensors
from torch import Tensor
from torch.nn import functional

from megadeberta.ops import logits as logit_rules
from megadeberta.ops.logits import TORCH, TRITON
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.recompute import gelu_then
from megadeberta.ops.recycled_buffer import RecycledBuffer
from megadeberta.ops.softmax_rows import Statistics, label_columns, softmax_rows
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


# fp32: sums over the vocabulary. Half: 8 or 11 bits of every softmax, and the interpreter cuts off what does not fit.
_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.mark.parametrize("keep_logits", [False, True], ids=["", "logits kept"])
@pytest.mark.parametrize("kernel_bytes", [2**31, 0], ids=["error kept", "recomputed"])
@pytest.mark.parametrize("dtype", list(_TOLERANCE), ids=str)
def test_the_kernels_equal_plain_cross_entropy(
    dtype: torch.dtype, kernel_bytes: int, keep_logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_rules, "KERNEL_BYTES", kernel_bytes)
    monkeypatch.setattr(logit_rules, "CHUNK_ELEMENTS", 3 * VOCABULARY)
    leaves, labels = _inputs(dtype)
    loss, correct, logits = masked_cross_entropy(*leaves, labels, implementation=TRITON, keep_logits=keep_logits)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = _plain(*exact, labels)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=_TOLERANCE[dtype])
    plain = torch.addmm(leaves[2], leaves[0], leaves[1].T)
    assert correct == ((plain.argmax(-1) == labels) & (labels != 0)).sum()
    assert (logits is not None) == keep_logits
    if keep_logits:
        torch.testing.assert_close(logits, plain.detach())
    for ours, theirs in zip(
        torch.autograd.grad(loss * 1000, leaves), torch.autograd.grad(expected * 1000, exact), strict=True
    ):
        assert (ours.double() - theirs).norm() <= _TOLERANCE[dtype] * theirs.norm()


class _OtherHalf:
    """The upper half of a vocabulary, as another rank has it, for a call with the lower one."""

    def __init__(self, logits: Tensor, labels: Tensor, *, largest: int) -> None:
        self.ids, self.largest = range(logits.size(1) - largest), largest
        upper = logits.detach()[:, len(self.ids) :]
        columns = label_columns(labels, range(len(self.ids), logits.size(1)))
        self.upper = softmax_rows(TORCH, upper.dtype)(upper.clone(), columns, overwrite=True).statistics(
            with_error=False
        )

    def combine(self, mine: Statistics) -> Statistics:
        best = torch.maximum(mine.best, self.upper.best)
        totals = [part.total * (part.best - best).exp() for part in (mine, self.upper)]
        return Statistics(best, sum(totals), mine.target + self.upper.target)

    def start_sum(self, gradient: Tensor) -> Callable[[], Tensor]:
        return lambda: gradient


@pytest.mark.parametrize("implementation", [TORCH, TRITON])
def test_a_shard_has_the_loss_and_its_part_of_the_gradients_of_the_whole(implementation: str) -> None:
    leaves, labels = _inputs(torch.float32)
    hidden, weight, bias = leaves
    expected = masked_cross_entropy(*leaves, labels, implementation=TORCH)
    whole = torch.autograd.grad(expected.loss_sum, leaves)
    other = _OtherHalf(torch.addmm(bias, hidden, weight.T), labels, largest=6)
    lower = [leaf.detach()[:5].requires_grad_() for leaf in (weight, bias)]
    found = masked_cross_entropy(hidden, *lower, labels, shards=other, implementation=implementation)
    torch.testing.assert_close(found.loss_sum, expected.loss_sum)
    assert found.hits == expected.hits
    for mine, all_ in zip(torch.autograd.grad(found.loss_sum, lower), whole[1:], strict=True):
        torch.testing.assert_close(mine, all_[:5])


@pytest.mark.parametrize("implementation", [TORCH, TRITON])
def test_one_tensor_of_the_logits_size_is_kept(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecycledBuffer, "take", lambda *_, **__: None)  # what is recycled is not made
    leaves, labels = _inputs(torch.float32)
    with KeptTensors(wanted=lambda tensor: tensor.numel() == ROWS * VOCABULARY) as kept:
        loss, *_ = masked_cross_entropy(*leaves, labels, implementation=implementation)
        found = kept.bytes()
    assert loss.requires_grad and found == 4 * ROWS * VOCABULARY


def test_no_targets_give_no_loss_and_zero_gradients() -> None:
    leaves, _ = _inputs()
    hidden = leaves[0][:0].detach().requires_grad_()
    loss, correct, _ = masked_cross_entropy(hidden, *leaves[1:], torch.zeros(0, dtype=torch.int64))
    assert loss == 0 and correct == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, leaves[1:]))


@pytest.mark.parametrize("implementation", [TORCH, TRITON])
def test_fp16_gradients_survive_a_softmax_below_its_range(implementation: str) -> None:
    """1/V of a large vocabulary times a small loss factor is subnormal in fp16 until the loss scale is on it."""
    torch.manual_seed(0)
    hidden = (0.01 * torch.randn(2, 8)).half().requires_grad_()
    weight = (0.01 * torch.randn(60_000, 8)).half().requires_grad_()
    bias, labels = torch.zeros(60_000, dtype=torch.float16), torch.tensor([5, 9])
    loss, *_ = masked_cross_entropy(hidden, weight, bias, labels, implementation=implementation)
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
