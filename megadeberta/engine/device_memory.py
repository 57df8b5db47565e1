"""How much memory of the device is in use."""

import torch


def take_peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors of this process have held on a GPU since the last call; None on a CPU.

    The allocator's own count, kept on the host: nothing waits for the device.
    """
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
