"""The GPU benchmark runs end to end on a toy size where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_gpu_benchmark_runs_on_a_toy_under_the_interpreter(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    command = [sys.executable, "benchmarks/gpu_attention.py", "--toy", "--dropout", "0.1", "--plot", str(chart)]
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert "megadeberta triton: largest relative difference" in done.stdout
    assert done.stdout.count("forward+backward") == 3
    assert chart.stat().st_size > 1000
