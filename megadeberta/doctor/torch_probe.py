"""What torch finds on this machine, as one line of JSON: run as a process of its own, which a bad driver may end.

    python -m megadeberta.doctor.torch_probe

Shapes: B batch · N heads · L length · H head size.
"""

import json
import sys
from typing import Any

import torch

from megadeberta.ops.attention.backends import BACKENDS
from megadeberta.ops.attention.comparison import AttentionCall, AttentionCheck
from megadeberta.ops.attention.mask import padding_mask
from megadeberta.ops.attention.relative_position import rows_by_distance
from megadeberta.ops.counter_dropout import CounterDropout

_SHAPE = 2, 4, 128, 64  # B, N, L, H: two tiles of the kernels each way
_BUCKETS, _MAX_DISTANCE = 64, 128


def probe() -> dict[str, Any]:
    """Versions, devices with their memory, and for each attention backend "" or why it does not run or is wrong."""
    has_gpu = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "cuda_error": "" if has_gpu else _cuda_error(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version()))
        if has_gpu and torch.distributed.is_nccl_available()
        else "",
        "architectures": torch.cuda.get_arch_list() if has_gpu else [],
        "devices": [_device(number) for number in range(torch.cuda.device_count())] if has_gpu else [],
        "attention": {name: _try_backend(name, "cuda" if has_gpu else "cpu") for name in BACKENDS},
    }


def _device(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    others = (other for other in range(torch.cuda.device_count()) if other != number)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "free": free,
        "total": total,
        "reaches": sum(torch.cuda.can_device_access_peer(number, other) for other in others),
    }


def _cuda_error() -> str:
    """Why a torch that was built for CUDA has no GPU."""
    if torch.version.cuda is None:
        return ""
    try:
        torch.cuda.init()
    except Exception as error:  # of many classes, by version
        return " ".join(str(error).split())
    return ""


def _try_backend(name: str, device: str) -> str:
    reason = BACKENDS[name].reason_not_to_run(device)
    if reason:
        return f"not here: {reason}"
    try:
        wrong = AttentionCheck(_call(torch.device(device))).finding(name)
    except Exception as error:  # a compiler's, a driver's
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"wrong: {wrong}" if wrong else ""


def _call(device: torch.device) -> AttentionCall:
    """Both position terms, padding and dropout, in the precision that GPUs train in."""
    batch, heads, length, size = _SHAPE
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    content = {n: draw(batch, length, heads, size).transpose(1, 2) for n in ("query", "key", "value")}
    tables = {name: draw(heads, 2 * _BUCKETS, size) for name in ("position key", "position query")}
    real = torch.arange(length, device=device) < torch.tensor([[length], [length - 5]], device=device)
    return AttentionCall(
        tensors={**content, **tables},
        rows=rows_by_distance(length, _BUCKETS, _MAX_DISTANCE).to(device),
        query_positions=None,
        mask=padding_mask(real),
        dropout=CounterDropout(0.1, torch.tensor(7, device=device), torch.arange(batch, device=device)),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
