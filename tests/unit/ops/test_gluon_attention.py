"""The Gluon kernels against the float64 reference by their emulation, which needs no GPU (tests/gluon_emulation)."""

from unittest.mock import patch

import pytest
import torch

from megadeberta.ops.attention import gluon_support
from megadeberta.ops.attention.backends import BACKENDS
from megadeberta.ops.attention.gluon_support import reason_without_gluon
from megadeberta.ops.attention.triton_call import gluon_takes
from tests.gluon_emulation import Hazard, emulated_kernels
from tests.unit.ops.cases import NAMES, Case, largest_error, run

# Two-byte numbers rounded, as on a GPU; and held in fp32, where only the order of sums differs.
BF16, EXACT = 2e-2, 1e-5

QUICK = Case(batch=2, heads=1, length=70, head_size=32, mask="padding", dropout=0.1)


def _error(case: Case, dtype: torch.dtype, *, exact: bool = False) -> tuple[float, str]:
    with emulated_kernels(exact=exact):
        return largest_error(case, backend="gluon", dtype=dtype)


def test_kernels_equal_the_reference_but_for_the_order_of_sums() -> None:
    error, where = _error(QUICK, torch.float32, exact=True)
    assert error <= EXACT, where


def test_kernels_in_bf16_stay_within_its_rounding() -> None:
    error, where = _error(Case(batch=1, heads=1, length=66, head_size=64, mask="packed"), torch.bfloat16)
    assert error <= BF16, where


def test_target_rows_with_positions_of_their_own_equal_the_reference() -> None:
    error, where = _error(Case(batch=1, heads=1, length=40, rows=5, dropout=0.5), torch.float32, exact=True)
    assert error <= EXACT, where


@pytest.mark.campaign
@pytest.mark.parametrize("length", [64, 150, 200])
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "prefix", "packed"])
@pytest.mark.parametrize("terms", ["c2p|p2c", "c2p", "p2c"])
def test_kernels_equal_the_reference_in_every_variant(length: int, head_size: int, mask: str, terms: str) -> None:
    case = Case(2, 2, length, head_size, terms, mask, dropout=0.1, buckets=32, seed=length)
    error, where = _error(case, torch.float32, exact=True)
    assert error <= EXACT, where
    for dtype in (torch.bfloat16, torch.float16):
        error, where = _error(case, dtype)
        assert error <= BF16, where


@pytest.mark.campaign
def test_kernels_equal_the_reference_in_several_shares_of_a_batch() -> None:
    with patch("megadeberta.ops.attention.triton_plan.PROGRAMS_WANTED", 6):
        error, where = _error(Case(batch=5, heads=1, length=100, mask="packed"), torch.float32, exact=True)
    assert error <= EXACT, where


# The emulation sees what it is for.


BARRIERS = {"forward_kernel": 2, "query_kernel": 7, "key_kernel": 7, "table_kernel": 10}
"""Of a tile."""


def _leave_out(kernel: str, number: int) -> None:
    case = Case(batch=1, heads=1, length=70, mask="padding", dropout=0.1)
    with (
        pytest.raises(Hazard, match="without a barrier"),
        emulated_kernels(exact=True, without_barrier=(kernel, number)),
    ):
        run(case, backend="gluon", dtype=torch.float32)


@pytest.mark.parametrize("kernel", BARRIERS)
def test_a_barrier_that_is_left_out_is_found(kernel: str) -> None:
    _leave_out(kernel, BARRIERS[kernel] // 2)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("kernel", "number"), [(kernel, number) for kernel, tile in BARRIERS.items() for number in range(2 * tile)]
)
def test_every_barrier_is_needed(kernel: str, number: int) -> None:
    """Of the first program's two tiles; the table kernel's first window has them too."""
    _leave_out(kernel, number)


# What the kernels do not take.


def test_the_portable_kernels_do_what_these_do_not_take() -> None:
    case = Case(batch=1, heads=1, length=9, terms="")
    expected, found = (run(case, backend=name, dtype=torch.bfloat16) for name in ("triton", "gluon"))
    for name in NAMES:
        assert found[name] is None if expected[name] is None else torch.equal(found[name], expected[name])


def test_two_bytes_heads_of_64_and_rows_of_sixteen_bytes_are_taken() -> None:
    def takes(query: torch.Tensor, *tables: torch.Tensor) -> bool:
        return gluon_takes(query, query, query, list(tables))

    query, table = torch.zeros(1, 2, 8, 64, dtype=torch.bfloat16), torch.zeros(2, 5, 64, dtype=torch.bfloat16)
    assert takes(query, table) and takes(query.half(), table.half(), table.half())
    assert not takes(query)
    assert not takes(query.float(), table.float())
    assert not takes(query[..., :48], table[..., :48])
    assert not takes(torch.zeros(1, 2, 8, 65, dtype=torch.bfloat16)[..., :64], table)
    assert not takes(torch.zeros(8 * 128 + 1, dtype=torch.bfloat16)[1:].view(1, 2, 8, 64), table)


def test_the_installed_triton_has_what_the_kernels_use() -> None:
    assert reason_without_gluon() == ""


def test_an_older_gluon_a_cpu_and_another_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BACKENDS["gluon"]
    assert "this is a CPU" in backend.reason_not_to_run("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "compute capability 9.0, and this GPU has 8.0" in backend.reason_not_to_run("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert backend.reason_not_to_run("cuda") == ""
    for names, reason in (
        ({".language": "barrier another_name"}, "Gluon of this Triton has no another_name"),
        ({".elsewhere": ""}, "this Triton has no Gluon for Hopper (ModuleNotFoundError: "),
    ):
        reason_without_gluon.cache_clear()
        with patch.dict(gluon_support.USED, names):
            assert backend.reason_not_to_run("cuda").startswith(reason)
    reason_without_gluon.cache_clear()
