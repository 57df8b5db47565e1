"""The CPU path against the reference, masks, and the counter-based dropout."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megadeberta.ops.attention import cpu as cpu_module
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import ROUNDS, CounterDropout, _rounds, kept, philox
from tests.unit.ops.cases import NAMES, Case, largest_error, packed_mask, run

MASKS = ("none", "padding", "causal", "prefix", "packed")
# fp32 has 24 bits: sums of a few hundred products come out at a few 1e-7.
FP32 = 1e-6

cases = st.builds(
    Case,
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.sampled_from([1, 2, 7, 63, 64, 65, 130]),
    head_size=st.sampled_from([8, 32, 64]),
    terms=st.sampled_from(["c2p|p2c", "c2p", "p2c", ""]),
    mask=st.sampled_from(MASKS),
    rows=st.sampled_from([None, None, 1, 5]),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    buckets=st.sampled_from([8, 32, -1]),
    seed=st.integers(0, 2**16),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases, backend=st.sampled_from(["cpu", "cpu-lean"]))
def test_cpu_path_equals_the_reference(case: Case, backend: str) -> None:
    error, where = largest_error(case, backend=backend, dtype=torch.float32)
    assert error <= FP32, where


@pytest.mark.parametrize("mask", MASKS)
def test_cpu_path_equals_the_reference_when_a_head_needs_many_tiles(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "TILE_ELEMENTS", 1000)
    error, where = largest_error(Case(length=130, mask=mask, dropout=0.1), backend="cpu", dtype=torch.float32)
    assert error <= FP32, where


def test_cpu_path_is_right_at_lengths_where_far_distances_share_rows() -> None:
    case = Case(batch=1, heads=1, length=600, head_size=16, buckets=16)
    error, where = largest_error(case, backend="cpu", dtype=torch.float32)
    assert error <= FP32, where


def test_cpu_path_in_bf16_stays_within_its_rounding() -> None:
    error, where = largest_error(Case(length=65), backend="cpu", dtype=torch.bfloat16)
    assert error <= 2e-2, where


def test_packed_documents_equal_the_documents_alone() -> None:
    torch.manual_seed(0)
    borders, length = torch.tensor([0, 5, 6, 17]), 20
    query, key, value = (torch.randn(1, 2, length, 8, dtype=torch.float64) for _ in range(3))
    tables = [torch.randn(2, 8, 8, dtype=torch.float64) for _ in range(2)]

    def attend(start: int, end: int, mask=None) -> torch.Tensor:
        position = PositionTerms(rows_by_distance(end - start, 4, 8), *tables)
        part = (t[:, :, start:end] for t in (query, key, value))
        return disentangled_attention(*part, position=position, mask=mask)

    packed = attend(0, length, packed_mask(borders, length))
    for start, end in ((0, 5), (5, 6), (6, 17)):
        torch.testing.assert_close(packed[:, :, start:end], attend(start, end), rtol=1e-9, atol=1e-12)
    assert packed[:, :, 17:].abs().max() == 0


def test_dropout_of_a_part_is_that_part_of_the_whole() -> None:
    seed = torch.tensor(77)
    whole = CounterDropout(0.3, seed, torch.arange(4))
    part = CounterDropout(0.3, seed, torch.arange(2, 4), first_head=1)
    index = [torch.arange(n) for n in (4, 3)]
    rows = torch.arange(5)
    all_of_it = kept(whole, index[0][:, None, None], index[1][None, :, None], rows=rows, num_columns=21)
    some = kept(part, index[0][:2, None, None], index[1][None, :2, None], rows=rows, num_columns=21)
    assert torch.equal(all_of_it[2:, 1:], some)


def test_dropout_drops_the_rounded_share_and_keeps_the_expectation() -> None:
    dropout = CounterDropout(0.1, torch.tensor(5), torch.arange(64))
    index = torch.arange(64)
    is_kept = kept(dropout, index[:, None], torch.tensor(0), rows=index[None, :], num_columns=512).double()
    # 2M draws: five standard deviations of the mean are 1e-3.
    assert abs(is_kept.mean().item() - 230 / 256) < 1e-3
    assert dropout.scale * 230 / 256 == 1.0
    columns, rows = is_kept.mean((0, 1)), is_kept.mean((0, 2))
    # 4096 and 32768 draws each: six standard deviations.
    assert (columns - 230 / 256).abs().max() < 0.03
    assert (rows - 230 / 256).abs().max() < 0.01


def test_philox_gives_the_words_of_the_published_generator() -> None:
    """Counters and keys of all ones; the words are those of a scalar transcription of the paper's figure 2."""
    ones = 2**32 - 1
    counter, key = [ones] * 4, [ones] * 2
    for _ in range(ROUNDS):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & ones,
            (first >> 32) ^ counter[3] ^ key[1],
            first & ones,
        ]
        key = [(key[0] + 0x9E3779B9) & ones, (key[1] + 0xBB67AE85) & ones]
    ones_tensor = torch.tensor(ones)
    assert [int(word) for word in philox(torch.tensor(-1), *[ones_tensor] * 4)] == counter
    # The form for other devices, whose words are signed.
    assert [int(word) for word in _rounds(torch.tensor(-1), *[ones_tensor] * 4)] == counter


def test_a_call_without_gradients_keeps_no_probabilities() -> None:
    kept_bytes = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept_bytes.append(tensor.nbytes)
        return tensor

    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        query = torch.randn(1, 1, 4, 8)
        disentangled_attention(query, query, query)
    assert not kept_bytes


def test_gradients_pass_a_numerical_check() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    tables = [torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    rows = rows_by_distance(5, 4, 8)
    rows = rows - rows[0]

    def attend(query, key, value, position_key, position_query) -> torch.Tensor:
        position = PositionTerms(rows, position_key, position_query)
        return disentangled_attention(query, key, value, position=position, backend="cpu")

    assert torch.autograd.gradcheck(attend, (query, key, value, *tables))


def test_self_attention_rows_given_as_positions_equal_self_attention() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 9, 4, dtype=torch.float64)
    tables = [torch.randn(2, 8, 4, dtype=torch.float64) for _ in range(2)]
    position = PositionTerms(rows_by_distance(9, 4, 8), *tables)
    whole = disentangled_attention(query, query, query, position=position)
    positions = torch.tensor([[7, 0, 7]])
    some = disentangled_attention(query[:, :, positions[0]], query, query, position=position, query_positions=positions)
    torch.testing.assert_close(some, whole[:, :, positions[0]], rtol=1e-9, atol=1e-12)


def test_fully_hidden_rows_give_zeros_and_finite_gradients() -> None:
    results = run(Case(mask="padding"), backend="cpu", dtype=torch.float32)
    assert results["context"][-1].abs().max() == 0
    assert all(torch.isfinite(value).all() for value in results.values())
    assert results["key"][-1].abs().max() == 0


@pytest.mark.parametrize("rows", [None, 5])
def test_autocast_changes_nothing_inside_the_op_not_even_in_backward(rows: int | None) -> None:
    case = Case(mask="padding", dropout=0.1, rows=rows)
    plain = run(case, backend="cpu", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(case, backend="cpu", dtype=torch.float32)
    for name in NAMES:
        torch.testing.assert_close(cast[name], plain[name], rtol=0, atol=0)
