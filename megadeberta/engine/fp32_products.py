"""How a GPU multiplies fp32 matrices: in fp32, or in TF32 on its tensor cores."""

import torch


def set_tf32(allowed: bool, device: torch.device) -> str | None:
    """Let products and convolutions of fp32 tensors round their inputs to TF32 (10 bits of mantissa), or not.

    Nothing on a CPU. torch itself starts with TF32 for convolutions and fp32 for products. Our kernels multiply fp32 in
    fp32 either way.

    Returns:
        A line for the log, where there is something to say.
    """
    if device.type != "cuda":
        return None
    # Not the newer `fp32_precision`: what reads the flags by their old names, as torch.compile does, would then fail.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    return f"fp32 products on the GPU: {'TF32' if allowed else 'fp32'} (training.tf32)"
