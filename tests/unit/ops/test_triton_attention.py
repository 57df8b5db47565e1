"""The Triton kernels against the float64 reference: through the interpreter, or on a GPU where there is one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpretedFunction

from megadeberta.ops.attention import triton_plan
from megadeberta.ops.attention.interface import disentangled_attention
from megadeberta.ops.attention.position_terms import PositionTerms
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout
from tests.unit.ops.cases import NAMES, Case, largest_error, run

# fp32 with fp32 accumulation: a few units in the last place of sums of some hundred products.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

cases = st.builds(
    Case,
    batch=st.integers(1, 2),
    heads=st.just(1),
    length=st.sampled_from([1, 2, 31, 33, 47]),
    head_size=st.sampled_from([32, 64, 96, 128]),
    terms=st.sampled_from(["c2p|p2c", "c2p|p2c", "c2p", "p2c", ""]),
    mask=st.sampled_from(["none", "padding", "causal", "prefix", "packed"]),
    rows=st.sampled_from([None, None, 1, 5]),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    buckets=st.sampled_from([8, 32, -1]),
    seed=st.integers(0, 2**16),
)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that cut these short sequences; the interpreter's time is the number of tiles."""
    monkeypatch.setattr(triton_plan, "_TILE", 32)


@settings(
    max_examples=12,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take the interpreter minutes
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases, dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
def test_kernels_equal_the_reference(case: Case, dtype: torch.dtype) -> None:
    error, where = largest_error(case, backend="triton", dtype=dtype)
    assert error <= TOLERANCE[dtype], where


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
def test_kernels_equal_the_reference_at_every_head_size(head_size: int) -> None:
    case = Case(batch=1, heads=2, length=33, head_size=head_size, mask="padding", dropout=0.1)
    error, where = largest_error(case, backend="triton", dtype=torch.float32)
    assert error <= TOLERANCE[torch.float32], where


@pytest.mark.parametrize("rows", [None, 9])
def test_kernels_equal_the_reference_beyond_512_tokens(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "_TILE", 64)
    case = Case(batch=1, heads=1, length=530, rows=rows, mask="packed")
    error, where = largest_error(case, backend="triton", dtype=torch.float32)
    assert error <= TOLERANCE[torch.float32], where


@pytest.mark.parametrize("length", [64, 150])
def test_kernels_equal_the_reference_in_the_tiles_of_a_gpu(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "_TILE", 64)
    case = Case(batch=1, heads=1, length=length, mask="padding", dropout=0.1)
    error, where = largest_error(case, backend="triton", dtype=torch.float32)
    assert error <= TOLERANCE[torch.float32], where


def test_copies_of_a_row_at_one_position_get_its_context_and_share_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = rows_by_distance(40, 8, 64)
    sizes = ((1, 1, 5, 32), *[(1, 1, 40, 32)] * 2, *[(1, int(rows.max()) + 1, 32)] * 2)
    positions = torch.tensor([[0, 7, 12, 39, 30, 0, 7, 7]])
    results = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [torch.randn(size, generator=generator.manual_seed(1), dtype=torch.float64) for size in sizes]
        query, key, value, *tables = leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        copied = torch.cat([query, query[:, :, [0, 1, 1]]], dim=2)
        context = disentangled_attention(
            copied, key, value, position=PositionTerms(rows, *tables), query_positions=positions, backend=backend
        )
        weights = torch.linspace(-1, 1, context.numel(), dtype=dtype).view_as(context)
        results.append([context, *torch.autograd.grad((context * weights).sum(), leaves)])
    for right, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


def test_a_rank_with_some_of_the_heads_computes_what_one_with_all_does() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = rows_by_distance(40, 8, 64)
    content = [torch.randn(1, 3, 40, 32, generator=generator) for _ in range(3)]
    tables = [torch.randn(3, int(rows.max()) + 1, 32, generator=generator) for _ in range(2)]
    dropout = CounterDropout(0.5, torch.tensor(7), torch.tensor([3]))

    def attend(heads: slice) -> torch.Tensor:
        return disentangled_attention(
            *(tensor[:, heads] for tensor in content),
            position=PositionTerms(rows, *(table[heads] for table in tables)),
            dropout=replace(dropout, first_head=heads.start),
            backend="triton",
        )

    torch.testing.assert_close(torch.cat([attend(slice(0, 1)), attend(slice(1, 3))], dim=1), attend(slice(0, 3)))


def grids_by_kernel(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    grids: dict[str, tuple[int, ...]] = {}
    launch = InterpretedFunction.run

    def run_and_note(self: InterpretedFunction, *args: Any, grid: tuple[int, ...], **options: Any) -> None:
        grids[self.fn.__name__] = grid
        launch(self, *args, grid=grid, **options)

    with monkeypatch.context() as patched:
        patched.setattr(InterpretedFunction, "run", run_and_note)
        run(case, backend="triton", dtype=torch.float32)
    return grids


def test_rows_with_positions_of_their_own_take_no_more_programs_than_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    all_rows = grids_by_kernel(Case(batch=1, heads=2, length=40), monkeypatch)
    assert grids_by_kernel(Case(batch=1, heads=2, length=40, rows=9), monkeypatch) == all_rows | {"delta_kernel": (1,)}


def test_programs_are_along_the_axis_that_does_not_end_at_65535(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = grids_by_kernel(Case(batch=1, heads=2, length=40), monkeypatch)
    assert set(grids) == {f"{name}_kernel" for name in ("forward", "delta", "query", "key", "table", "fold")}
    assert all(len(grid) == 1 for grid in grids.values())


def test_kernels_in_fp16_stay_within_its_rounding() -> None:
    error, where = largest_error(Case(heads=1), backend="triton", dtype=torch.float16)
    assert error <= TOLERANCE[torch.float16], where


def test_gradients_are_the_same_bits_every_time() -> None:
    case = Case(heads=1, length=40, dropout=0.1)
    first, second = (run(case, backend="triton", dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_a_long_batch_gives_the_table_gradient_in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "PROGRAMS_WANTED", 6)
    assert triton_plan.KernelPlan(32, 32, 4, 1).shares(3, 1, 3) == (2, 2)
    error, where = largest_error(Case(batch=3, heads=1, length=33), backend="triton", dtype=torch.float32)
    assert error <= TOLERANCE[torch.float32], where
