"""Benchmarks are found to be stale here, not when a number is needed: all of them import what they name, and those
that compare attention on a CPU run end to end on a toy; the GPU's does in test_gpu_day.py."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _output(*arguments: str) -> str:
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments, "--toy"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_benchmark_imports_what_it_names() -> None:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    names += sorted(f"gpu.{path.stem}" for path in (ROOT / "benchmarks/gpu").glob("*.py"))
    assert len(names) > 10
    code = f"import importlib; [importlib.import_module(name) for name in {names!r}]"
    # Most are scripts beside one another; the others are modules of `benchmarks`.
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_benchmark_of_transformers_models_compares_inference_and_fine_tuning_on_a_toy(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    output = _output("benchmarks/hf_attention.py", "--shapes", "2x16", "--layers", "1", "--plot", str(chart))
    assert output.count("relative difference of logits") == 1
    assert output.count("transformers eager") == output.count("use_fast_attention") == 3
    assert chart.stat().st_size > 1000


def test_the_cpu_benchmark_compares_layer_step_optimizer_and_objectives_on_a_toy(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    output = _output("benchmarks/cpu_step.py", "--shapes", "2x16", "--repeats", "1", "--plot", str(chart))
    assert output.count("x BERT") == output.count("KiB a token a layer") == 6
    assert output.count("transformers eager") == 4  # layer, step, bytes kept, optimizer
    assert output.count("RTD step : MLM step") == 1
    assert chart.stat().st_size > 1000
