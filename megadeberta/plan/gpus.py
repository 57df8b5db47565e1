"""GPU types by name, for ``megadeberta plan --gpu``: what a plan needs to know of each."""

import difflib
from dataclasses import dataclass

from megadeberta.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One type of GPU in the usual machine around it."""

    device: str
    """Its name in ``observability/device_peaks.py``, which has the peak that MFU is measured against."""
    memory_gib: float
    tflops: float
    """What code of Megatron's kind sustains at a hidden size of 2048 (``Cluster.tflops``); middle of the published
    tables of docs/plan.md."""
    memory_bandwidth: float
    """GB/s of its own memory: four fifths of the data sheet."""
    intra: float
    """GB/s to its own node: four fifths of the data sheet's NVLink, one direction."""
    inter: float
    """GB/s to other nodes: 95 % of the InfiniBand of NVIDIA's own machines, divided by their GPUs."""
    takes_kernels: bool
    """Whether the Triton kernels run on it (compute capability 8.0 or more), which ``training.attention=auto`` then
    takes after its trial."""


GPUS = {
    "v100-16": Gpu("V100", 16, 60, 720, 120, 1.2, takes_kernels=False),
    "v100-32": Gpu("V100", 32, 60, 720, 120, 6, takes_kernels=False),
    "a100-40": Gpu("A100", 40, 150, 1240, 240, 24, takes_kernels=True),
    "a100-80": Gpu("A100", 80, 150, 1630, 240, 24, takes_kernels=True),
    "h100": Gpu("H100", 80, 420, 2680, 360, 47.5, takes_kernels=True),
    "h200": Gpu("H200", 141, 420, 3840, 360, 47.5, takes_kernels=True),
}
"""V100 and A100 in DGX-1, DGX-2 and DGX A100, H100 and H200 in DGX. No published row has an H200: its rate is the
H100's."""


def find_gpu(name: str) -> Gpu:
    """The type of that name.

    Raises:
        ConfigError: there is none; names the nearest and all others.
    """
    key = name.lower().replace("_", "-").replace(" ", "-").removesuffix("gb")
    if key in GPUS:
        return GPUS[key]
    near = [known for known in GPUS if known.startswith(key)] or difflib.get_close_matches(key, GPUS, n=1)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ConfigError(
        f"--gpu {name}: unknown type; {hint}known: {', '.join(GPUS)}; for another give --memory, --tflops, "
        "--bandwidth-intra and --bandwidth-inter"
    )
