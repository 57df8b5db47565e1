"""Whether the kernels in Gluon run here: what they use of Triton, and the GPU they are for."""

from functools import cache
from importlib import import_module

import torch

USED = {
    "": "jit constexpr_function",
    ".language": "NVMMADistributedLayout NVMMASharedLayout PaddedSharedLayout DotOperandLayout allocate_shared_memory "
    "convert_layout barrier inline_asm inline_asm_elementwise static_range num_warps",
    ".language.nvidia.hopper": "async_copy fence_async_shared warpgroup_mma warpgroup_mma_wait",
    ".language.nvidia.ampere.async_copy": "async_load commit_group wait_group",
}
"""By module of Gluon, which changes between minor versions of Triton."""


def reason_not_to_run() -> str:
    """Why they do not, for the user; empty if they do. Triton is installed."""
    return reason_without_gluon() or _reason_without_hopper()


@cache
def reason_without_gluon() -> str:
    """What the installed Triton lacks of ``USED``; empty if nothing."""
    for module, names in USED.items():
        try:
            found = import_module(f"triton.experimental.gluon{module}")
        except Exception as error:  # experimental: its import may raise anything
            return f"this Triton has no Gluon for Hopper ({type(error).__name__}: {error})"
        missing = [name for name in names.split() if not hasattr(found, name)]
        if missing:
            return f"Gluon of this Triton has no {', '.join(missing)}"
    return ""


def _reason_without_hopper() -> str:
    if not torch.cuda.is_available():
        return "it needs a GPU, and there is none"
    major, minor = torch.cuda.get_device_capability()
    return "" if (major, minor) == (9, 0) else f"it needs compute capability 9.0, and this GPU has {major}.{minor}"
