"""What a rank computes on, by name, for the record of a run."""

import platform
from pathlib import Path

import torch


def device_name() -> str:
    """The GPU as torch names it; without one the model of the processors, as Linux names it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
