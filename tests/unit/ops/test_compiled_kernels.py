"""What the kernels become when they are launched on a GPU, which needs no GPU: see benchmarks/kernel_report.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SHARED_BYTES_OF_A_BLOCK = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
INSTRUCTIONS = {"forward": 2400, "query": 2300, "key": 2100, "table": 2500}
"""At most, by kernel: warp instructions in the loop over tiles of 64 x 64, head size 64, dropout and mask."""


def reports(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """By kernel. In a process of its own: kernels are defined for the interpreter or for the compiler."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder)}
    environ.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "benchmarks/kernel_report.py", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["kernel"] for row in rows}) == len(rows)
    return {row["kernel"]: row for row in rows}


def of_attention(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The four of attention by their short names, with what they must all hold to."""
    kernels = {name: found[f"triton_kernels.{name}_kernel"] for name in INSTRUCTIONS}
    for row in kernels.values():
        assert row["tensor"] > 0, row
        assert row["shared_bytes"] <= SHARED_BYTES_OF_A_BLOCK[row["arch"]], row
    return kernels


def test_as_launched_on_a_hopper_gpu_kernels_spill_little_and_two_blocks_share_a_multiprocessor(tmp_path: Path) -> None:
    found = reports(tmp_path)
    for name, row in of_attention(found).items():
        assert row["instructions"] <= INSTRUCTIONS[name], row
        assert row["spill_bytes"] <= 128 and row["registers"] <= 255, row
        assert row["blocks_per_sm"] >= 2 and row["shared_bytes"] <= 84 << 10, row
    # One launch each: one kernel of attention forward, and five backward.
    others = {name: row for name, row in found.items() if not name.startswith("triton_kernels.")}
    assert set(others) == {
        "triton_reductions.delta_kernel",
        "triton_reductions.fold_kernel",
        "triton_residual_norm.forward_kernel",
        "triton_residual_norm.backward_kernel",
    }
    for row in others.values():
        assert row["spill_bytes"] <= 16 and row["blocks_per_sm"] >= 4, row


@pytest.mark.campaign
@pytest.mark.parametrize("case", ["nomask", "nodrop", "rows", "short", "long"])
def test_as_launched_on_a_hopper_gpu_other_calls_cost_about_the_same(case: str, tmp_path: Path) -> None:
    for name, row in of_attention(reports(tmp_path, "--case", case)).items():
        allowed = {"rows": 1.05, "nomask": 0.9, "nodrop": 0.9}.get(case, 1.0)
        assert row["instructions"] <= allowed * INSTRUCTIONS[name], row
        assert row["spill_bytes"] <= 128 and row["blocks_per_sm"] >= 2, row


@pytest.mark.campaign
@pytest.mark.parametrize("case", ["d96", "d128"])
def test_as_launched_on_a_hopper_gpu_large_heads_fit_and_spill_little(case: str, tmp_path: Path) -> None:
    for row in of_attention(reports(tmp_path, "--case", case)).values():
        assert row["spill_bytes"] <= 128, row


@pytest.mark.campaign
@pytest.mark.parametrize("arch", [80, 89])
def test_as_launched_before_hopper_shuffles_are_no_function_calls(arch: int, tmp_path: Path) -> None:
    for row in of_attention(reports(tmp_path, "--arch", str(arch))).values():
        assert row["calls"] <= 70, row


@pytest.mark.campaign
def test_small_tiles_of_large_heads_fit_the_shared_memory_of_ada(tmp_path: Path) -> None:
    for row in of_attention(reports(tmp_path, "--arch", "89", "--case", "d128", "--tile", "32")).values():
        assert row["blocks_per_sm"] >= 1, row


SHIFTED = {"forward": (1100, 2), "query": (1400, 2), "key": (1400, 2), "table": (1400, 1)}
"""Of the Gluon kernels: most instructions of a tile, fewest blocks. The table kernel's have twice the warps."""


def test_as_launched_on_a_hopper_gpu_the_gluon_kernels_spill_nothing(tmp_path: Path) -> None:
    found = reports(tmp_path, "--backend", "gluon")
    for name, (instructions, blocks) in SHIFTED.items():
        row = found[f"gluon_{name}.{name}_kernel"]
        assert row["instructions"] <= instructions, row
        assert row["spill_bytes"] == row["local"] == row["calls"] == 0, row
        assert row["blocks_per_sm"] >= blocks and row["warps"] * row["blocks_per_sm"] >= 8, row
        assert row["tensor"] > 0 and row["shared_bytes"] <= SHARED_BYTES_OF_A_BLOCK[90], row
