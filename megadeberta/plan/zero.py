"""Parameters, gradients and optimizer states under ZeRO, and the buffers that DeepSpeed 0.19.8 makes for them.

Measured by counting the tensors of real engines (tests/unit/plan/test_zero.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megadeberta.config.deepspeed_block import is_enabled

_FP32 = 4
_MOMENTS, _MASTER_AND_MOMENTS = 2 * _FP32, 3 * _FP32
# Defaults of runtime/zero/config.py, in elements.
_BUCKET, _PREFETCH, _REUSE_DISTANCE = 5 * 10**8, 5 * 10**7, 10**9


@dataclass(frozen=True)
class ZeroMemory:
    """Bytes. bucket: where gradients are collected to be reduced. momentary: what comes and goes while they are
    computed. update: while the optimizer steps, when neither is in use.
    """

    parameters: int
    gradients: int
    optimizer: int
    bucket: int
    momentary: int
    update: int


def zero_memory(
    count: int, *, block: Mapping[str, Any], stage: int, data_parallel: int, largest_parameter: int
) -> ZeroMemory:
    """Of a rank whose model has ``count`` parameters.

    largest_parameter: elements; its gradient is whole before it is reduced.
    """
    width = 2 if _is_half(block) else _FP32
    if stage == 0:
        return _without_zero(count, width, is_reduced=data_parallel > 1)
    zero = block.get("zero_optimization", {})
    elements = int(zero.get("reduce_bucket_size", _BUCKET))
    num_buckets = 2 if zero.get("overlap_comm") and stage < 3 else 1
    bucket = elements * width * num_buckets if zero.get("contiguous_gradients", True) else 0
    share = -(-count // data_parallel)
    # A bucket is flattened once more to be reduced; a gradient is whole before it goes into one.
    momentary = min(count, elements) * width + largest_parameter * width
    optimizer, update = share * _MASTER_AND_MOMENTS, share * _FP32
    if stage == 3:
        momentary = (largest_parameter + _gathered(count, zero, largest_parameter)) * width
        return ZeroMemory(share * width, share * width, optimizer, bucket, momentary, update)
    gradients = share * width
    if stage == 1:
        gradients = count * (width + (_FP32 if accumulates_in_fp32(block) else 0))
    return ZeroMemory(count * width, gradients, optimizer, bucket, momentary, update)


def _without_zero(count: int, width: int, *, is_reduced: bool) -> ZeroMemory:
    is_half = width < _FP32
    flat = min(count, _BUCKET) * width if is_reduced else 0
    states = count * (_MASTER_AND_MOMENTS if is_half else _MOMENTS)
    # 16-bit optimizers copy the gradients to fp32 to step.
    return ZeroMemory(count * width, count * width, states, 0, flat, count * _FP32 if is_half else 0)


def _gathered(count: int, zero: Mapping[str, Any], largest_parameter: int) -> int:
    """Elements of ZeRO-3 parameters that are there whole.

    A parameter that is needed again within the reuse distance stays: the last half of that distance, as the backward
    pass comes back the same way (runtime/zero/partitioned_param_coordinator.py ``__params_to_release``).
    """
    reuse = int(zero.get("stage3_max_reuse_distance", _REUSE_DISTANCE)) // 2
    prefetch = int(zero.get("stage3_prefetch_bucket_size", _PREFETCH))
    return min(count, reuse + prefetch + largest_parameter)


def _is_half(block: Mapping[str, Any]) -> bool:
    return is_enabled(block, "bf16") or is_enabled(block, "fp16")


def accumulates_in_fp32(block: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed adds up bf16 gradients in fp32, in a second buffer (runtime/bf16_optimizer.py)."""
    wanted = block.get("data_types", {}).get("grad_accum_dtype")
    return is_enabled(block, "bf16") and wanted in ("fp32", "float32")
