"""How many ranks this machine is made for, and how large their devices are."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from megadeberta.errors import ParallelError


def count_local_devices(environ: Mapping[str, str], *, device_folder: Path = Path("/dev")) -> int:
    """GPUs that a process started here may use: CUDA_VISIBLE_DEVICES if set, else the NVIDIA device files."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(1 for path in device_folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def check_accelerator(environ: Mapping[str, str]) -> None:
    """
    Raises:
        ParallelError: DeepSpeed is asked for a device that nothing here runs on.
    """
    name = environ.get("DS_ACCELERATOR", "")
    if name not in ("", "cpu", "cuda"):
        raise ParallelError(f"DS_ACCELERATOR={name!r} in the environment is none of cuda and cpu; unset it")


def smallest_device_gib() -> float | None:
    """Memory of the smallest NVIDIA GPU here, as its driver's `nvidia-smi` tells; None where that is not to be had."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [float(line) for line in done.stdout.split() if re.fullmatch(r"[0-9.]+", line)]
    return min(sizes) / 1024 if sizes else None
