"""Tensor-parallel operations equal the plain ones on the same inputs, forward and every gradient."""

import pytest
import torch
from torch import Tensor, distributed, nn

from megadeberta.layers.cuts import vocabulary_rows
from megadeberta.model.embeddings import WordTable
from megadeberta.model.residual import ResidualNorm
from megadeberta.ops import logits as logit_rules
from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.recompute import gelu_then
from megadeberta.ops.tied_table import TiedGradient, lookup
from megadeberta.parallel.tensor import collectives
from megadeberta.parallel.tensor.cross_entropy import OtherShards
from megadeberta.parallel.tensor.linear import (
    ColumnParallel,
    ColumnParallelLinear,
    RowParallelLinear,
    SequenceParallelNorm,
)
from megadeberta.parallel.tensor.sampling import best_of_shards
from megadeberta.parallel.tensor.shard import VocabularyShard
from megadeberta.parallel.tensor.vocabulary import VocabularyTable
from tests.ranks import run_ranks

B, L, D, INNER = 2, 12, 8, 24
VOCABULARY, ROWS = 67, 9
# Logic is compared in float64: only the order of summation may differ.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _linear(outputs: int, inputs: int, *, seed: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias).double()
    linear.weight.data = _random(outputs, inputs, seed=seed)
    if bias:
        linear.bias.data = _random(outputs, seed=seed + 1)
    return linear


def _shard(linear: nn.Linear, *, rank: int, ranks: int, dim: int) -> nn.Linear:
    part = nn.Linear(1, 1, bias=linear.bias is not None).double()
    part.weight = nn.Parameter(linear.weight.detach().chunk(ranks, dim)[rank].clone())
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach().chunk(ranks)[rank].clone() if dim == 0 else linear.bias.detach())
    return part


def _check_pair(rank: int, ranks: int, sequence_parallel: bool) -> None:
    """Projections of one input, a column-parallel layer, the recomputed gelu, a row-parallel layer, LayerNorm."""
    group = distributed.group.WORLD
    hidden, upstream = _random(B, L, D, seed=1).requires_grad_(), _random(B, L, D, seed=2)
    key, up, down = _linear(INNER, D, seed=3, bias=False), _linear(INNER, D, seed=5), _linear(D, INNER, seed=7)
    norm = ResidualNorm(D, 1e-5).double()
    norm.weight.data = _random(D, seed=9)
    expected = norm(gelu_then(down, up(hidden) * key(hidden)), hidden)
    expected.backward(upstream)

    options = {"group": group, "sequence_parallel": sequence_parallel}
    own_key, own_up = (_shard(linear, rank=rank, ranks=ranks, dim=0) for linear in (key, up))
    project = ColumnParallel(**options)
    assert not project.state_dict()
    own_down = RowParallelLinear(_shard(down, rank=rank, ranks=ranks, dim=1), **options)
    own_norm = ResidualNorm(D, 1e-5).double()
    own_norm.load_state_dict(norm.state_dict())
    share, take = hidden.detach().clone(), collectives.own_tokens
    if sequence_parallel:
        own_norm = SequenceParallelNorm(own_norm, group=group)
        share, upstream, expected = (take(tensor, group).detach().clone() for tensor in (share, upstream, expected))
    share.requires_grad_()
    gate, inner = project(share, own_key, own_up)
    output = own_norm(gelu_then(own_down, gate * inner), share)
    output.backward(upstream)

    torch.testing.assert_close(output, expected, **CLOSE)
    whole_grad = take(hidden.grad, group) if sequence_parallel else hidden.grad
    torch.testing.assert_close(share.grad, whole_grad, **CLOSE)
    for mine, whole, dim in ((own_key, key, 0), (own_up, up, 0), (own_down, down, 1)):
        torch.testing.assert_close(mine.weight.grad, whole.weight.grad.chunk(ranks, dim)[rank], **CLOSE)
    torch.testing.assert_close(own_up.bias.grad, up.bias.grad.chunk(ranks)[rank], **CLOSE)
    torch.testing.assert_close(own_down.bias.grad, down.bias.grad, **CLOSE)
    for mine, whole in zip(own_norm.parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, whole.grad, **CLOSE)


def _check_vocabulary(rank: int, ranks: int, chunk_elements: int) -> None:
    """Lookup, decoder and cross entropy share one table; its gradient is one, and the padding row gets a part of it."""
    logit_rules.CHUNK_ELEMENTS = chunk_elements
    shard = VocabularyShard(VOCABULARY, distributed.group.WORLD)
    weight, bias = _random(VOCABULARY, D, seed=1).requires_grad_(), _random(VOCABULARY, seed=2).requires_grad_()
    ids = torch.randint(VOCABULARY, (B, L), generator=torch.Generator().manual_seed(3))
    ids[0, :2] = 0
    labels = torch.tensor([66, 0, 1, 31, 32, 33, 0, 7, 7])
    mix, upstream = _random(ROWS, B * L, seed=4), _random(B, L, D, seed=5)

    def run(table: Tensor, offset: Tensor, look, decode) -> tuple[Tensor, Tensor, Tensor]:
        tied = TiedGradient(table)
        words = look(table, tied)
        loss, hits = decode(mix @ words.flatten(0, 1), table, offset, labels, tied)
        (loss + (words * upstream).sum()).backward()
        return words, loss, hits

    def plain_decode(hidden, table, offset, labels, tied):
        return masked_cross_entropy(hidden, table, offset, labels, tied=tied)[:2]

    expected = run(weight, bias, lambda table, tied: lookup(table, ids, padding=0, tied=tied), plain_decode)
    rows = slice(shard.rows.start, shard.rows.stop)
    own_weight = nn.Parameter(weight.detach()[rows].clone())
    own_bias = nn.Parameter(bias.detach()[rows].clone())
    words = WordTable(len(shard.rows), D, padding_idx=0)
    words.weight = own_weight
    table = VocabularyTable(words, shard=shard)

    def decode(hidden, table, offset, labels, tied):
        return masked_cross_entropy(hidden, table, offset, labels, tied=tied, shards=OtherShards(shard))[:2]

    found = run(own_weight, own_bias, lambda _, tied: table(ids, tied), decode)
    for mine, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, whole, **CLOSE)
    torch.testing.assert_close(own_weight.grad, weight.grad[rows], **CLOSE)
    torch.testing.assert_close(own_bias.grad, bias.grad[rows], **CLOSE)


def _check_tokens(rank: int, ranks: int) -> None:
    group = distributed.group.WORLD
    whole, upstream = _random(B, L, D, seed=1).requires_grad_(), _random(B, L, D, seed=2)
    share = collectives.take_tokens(whole, group)
    back = collectives.gather_tokens(share, group)
    back.backward(upstream)
    assert torch.equal(back, whole)
    assert torch.equal(whole.grad, upstream)


def _check_draw(rank: int, ranks: int) -> None:
    values = _random(50, VOCABULARY, seed=3).float()
    values[7, 3] = values[7, 60] = 9.0  # equal in two shards
    rows = vocabulary_rows(VOCABULARY, ranks)[rank]
    best, ids = values[:, rows.start : rows.stop].max(1)
    found = best_of_shards(best, ids + rows.start, distributed.group.WORLD)
    assert torch.equal(found, values.argmax(1))


def _check_order(rank: int, ranks: int) -> None:
    """In backward the sum over the ranks is launched, then the weight's gradient is computed, then it is waited for."""
    calls: list[str] = []
    launch, multiply = distributed.all_reduce, torch.Tensor.__matmul__

    class Work:
        def __init__(self, work: distributed.Work) -> None:
            self.work = work

        def wait(self) -> None:
            calls.append("wait")
            self.work.wait()

    def spy_launch(*args, **options):
        calls.append("launch")
        return Work(launch(*args, **options))

    def spy_multiply(left: Tensor, right: Tensor) -> Tensor:
        calls.append(f"gemm {tuple(left.shape)} x {tuple(right.shape)}")
        return multiply(left, right)

    linear = ColumnParallelLinear(_linear(INNER, D, seed=1), group=distributed.group.WORLD)
    output = linear(_random(B, L, D, seed=2).requires_grad_())
    distributed.all_reduce, torch.Tensor.__matmul__ = spy_launch, spy_multiply
    output.sum().backward()
    tokens = B * L
    assert calls == [
        f"gemm {(tokens, INNER)} x {(INNER, D)}",
        "launch",
        f"gemm {(INNER, tokens)} x {(tokens, D)}",
        "wait",
    ]


def _check_all(rank: int, ranks: int) -> None:
    _check_tokens(rank, ranks)
    _check_draw(rank, ranks)
    for sequence_parallel in (False, True):
        _check_pair(rank, ranks, sequence_parallel)
    for chunk in (2**27, 2 * VOCABULARY):
        _check_vocabulary(rank, ranks, chunk)


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_operations_equal_the_whole_ones(ranks: int) -> None:
    run_ranks(_check_all, ranks)


def test_the_weight_gradient_is_computed_while_the_input_gradient_is_summed() -> None:
    run_ranks(_check_order, 2)
