"""The kernels pass Triton's compiler for a Hopper GPU, and fit its shared memory; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SHARED_BYTES_H200 = 227 * 1024


def test_every_kernel_compiles_for_hopper_and_fits_its_shared_memory(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environ.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.unit.ops.compile_kernels", "64", "self"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = json.loads(done.stdout)
    assert len(shared) == 6
    assert max(shared.values()) <= SHARED_BYTES_H200
