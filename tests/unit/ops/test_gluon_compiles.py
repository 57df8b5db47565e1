"""The Gluon kernels as they are launched on a Hopper GPU, compiled without one: what they cost there."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MOST_INSTRUCTIONS = {"forward": 1100, "query": 1400, "key": 1400, "table": 1400}
"""Of a warp for a tile, at 512 tokens with padding mask and dropout."""
BLOCKS = {"forward": 2, "query": 2, "key": 2, "table": 1}
"""On a multiprocessor; those of the table kernel have twice the warps."""


def test_every_gluon_kernel_fits_the_registers_and_shared_memory_of_its_blocks(tmp_path: Path) -> None:
    code = """
import json
from dataclasses import asdict
from benchmarks.kernel_report import CASES, report
print(json.dumps([asdict(one) for one in report(CASES["base"], 90, backend="gluon", norm=False)]))
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environ.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {one["kernel"]: one for one in json.loads(done.stdout.splitlines()[-1])}
    for name, most in MOST_INSTRUCTIONS.items():
        kernel = found[f"gluon_{name}.{name}_kernel"]
        assert kernel["instructions"] <= most, kernel
        assert kernel["spill_bytes"] == kernel["calls"] == kernel["local"] == 0, kernel
        assert kernel["blocks_per_sm"] >= BLOCKS[name], kernel
        assert kernel["warps"] * kernel["blocks_per_sm"] >= 8, kernel
