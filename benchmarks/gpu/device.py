"""What the day ran on: card, clocks, versions, and the rates that everything else is compared with."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from stopwatch import device_seconds, gemm_rate

from gpu.finding import Finding
from gpu.scale import Scale
from megadeberta.observability.device_peaks import device_peak_flops

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "disentangled-flash", "flashdeberta", "numpy", "pydantic")
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,driver_version"
COPIED_BYTES, TINY_LAUNCHES = 2**30, 2000


def card(parameters: dict[str, Any]) -> Iterator[Finding]:
    """One finding; the clocks are read right after the matrix products, while the card is warm."""
    scale = Scale.of(parameters)
    device, dtype = torch.device(scale.device), getattr(torch, scale.dtype)
    values: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "cores": os.cpu_count(),
        "gemm_tflops": gemm_rate(device, dtype) / 1e12,
    }
    if device.type == "cpu":
        values["card"] = "a CPU"
    else:
        values |= describe_gpu(device)
    yield Finding(values)


def describe_gpu(device: torch.device) -> dict[str, Any]:
    clocks = read_clocks()
    facts = torch.cuda.get_device_properties(device)
    sheet = device_peak_flops(facts.name)
    source, target = (torch.empty(COPIED_BYTES, dtype=torch.int8, device=device) for _ in range(2))
    copying = device_seconds(lambda: target.copy_(source), device, 10)
    return {
        "card": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": facts.total_memory / 2**30,
        "sheet_tflops": None if sheet is None else sheet / 1e12,
        "copy_tbs": 2 * COPIED_BYTES / copying / 1e12,
        "launch_us": launch_microseconds(device),
        "clocks": clocks,
    }


def launch_microseconds(device: torch.device) -> float:
    """What the host takes to launch a small torch kernel: how fast this host is."""
    tensor = torch.zeros(1, device=device)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TINY_LAUNCHES):
        tensor.add_(1)
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return 1e6 * seconds / TINY_LAUNCHES


def read_clocks() -> str:
    """MHz, watts, degrees and driver, as nvidia-smi says; or why not."""
    if shutil.which("nvidia-smi") is None:
        return "not known: nvidia-smi is not installed"
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    names, found = CLOCKS.split(","), done.stdout.strip().splitlines()
    if done.returncode or not found:
        return f"not known: {(done.stderr or done.stdout).strip()[:200]}"
    return ", ".join(f"{name} {value.strip()}" for name, value in zip(names, found[0].split(","), strict=False))


def installed(package: str) -> str:
    """Its version; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
