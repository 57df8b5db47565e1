"""How many ranks this machine is made for."""

import re
from collections.abc import Mapping
from pathlib import Path


def count_local_devices(environ: Mapping[str, str], *, device_folder: Path = Path("/dev")) -> int:
    """GPUs that a process started here may use: CUDA_VISIBLE_DEVICES if set, else the NVIDIA device files."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(1 for path in device_folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
