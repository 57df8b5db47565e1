"""The kernels over logits compile for GPUs as they are launched: nothing spilled, wide loads, a draw without fused
multiply-add, which would round differently from the definition. No GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_over_logits_compile_without_spills_and_the_draw_without_fused_multiply_add(
    capability: str, tmp_path: Path
) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "TRITON_CACHE_DIR": str(tmp_path)}
    environ.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.unit.ops.compile_logit_kernels", capability]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout)
    assert [name.rpartition(".")[2] for name in kernels] == ["draw_kernel", *["softmax_kernel"] * 3]
    for name, kernel in kernels.items():
        assert kernel["spilled"] == 0, name
        assert kernel["narrow loads"] <= 1, name  # the label's logit
    draw, *softmax = kernels.values()
    assert draw["fused"] == 0 and draw["programs"] >= 8
    assert all(kernel["programs"] >= 1 for kernel in softmax)
