"""What Triton kernels are launched with, and what they were compiled to, read while they run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

REGISTERS = 65536
"""Of a multiprocessor, on every card since compute capability 5.0."""
RESERVED_SHARED = 1024
"""Bytes of shared memory that a block has besides its own, from compute capability 8.0 on."""
REGISTER_UNIT = 256
"""Registers are given to a warp in units of this many."""


@contextmanager
def recorded_launches() -> Iterator[dict[str, dict[str, Any]]]:
    """Facts of every Triton kernel that is launched in the block, by its name, filled as it is launched."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for launcher in _launchers():
            stack.enter_context(patch.object(launcher, "run", _recording(launcher.run, found)))
        yield found


def _launchers() -> list[type]:
    """What launches a kernel: compiled, and under the interpreter."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    return [JITFunction, InterpretedFunction]


def _recording(run: Any, found: dict[str, dict[str, Any]]) -> Any:
    def recorded(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=warmup, **options)
        if not warmup:
            choice = {key: value for key, value in options.items() if isinstance(value, int)}
            found[self.__name__] = {"grid": list(grid) if isinstance(grid, tuple) else None, "choice": choice}
            found[self.__name__] |= compiled_facts(kernel)
        return kernel

    return recorded


def compiled_facts(kernel: Any) -> dict[str, Any]:
    """Registers, spilled bytes, shared bytes and blocks per multiprocessor; nothing under the interpreter."""
    kernel = kernel.result() if hasattr(kernel, "result") else kernel
    if kernel is None or not hasattr(kernel, "metadata"):
        return {}
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    # As the driver reports them; a spilled register is four bytes of local memory.
    registers, spills = kernel.n_regs, 4 * kernel.n_spills
    for_a_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    blocks = min(
        REGISTERS // (for_a_warp * warps),
        gpu.shared_memory_per_multiprocessor // (shared + RESERVED_SHARED),
        gpu.max_threads_per_multi_processor // (32 * warps),
    )
    occupancy = 32 * warps * blocks / gpu.max_threads_per_multi_processor
    return {
        "registers": registers,
        "spilled_bytes": spills,
        "shared_bytes": shared,
        "warps": warps,
        "stages": getattr(kernel.metadata, "num_stages", None),
        "blocks_per_multiprocessor": blocks,
        "occupancy": occupancy,
    }
