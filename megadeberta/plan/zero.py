"""Parameters, gradients and optimizer states under ZeRO, and the buffers that DeepSpeed 0.19.8 makes for them.

Measured by counting the tensors of real engines (tests/unit/plan/test_zero.py).
"""

from dataclasses import dataclass

from megadeberta.config.deepspeed_block import EngineSettings

_FP32 = 4
_ALL_REDUCE_BUCKET = 5 * 10**8
"""Elements that are flattened to be reduced without ZeRO (runtime/engine.py ``MEMORY_OPT_ALLREDUCE_SIZE``)."""


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
    count: int,
    *,
    settings: EngineSettings,
    num_moments: int,
    stage: int,
    data_parallel: int,
    largest_parameter: int,
) -> ZeroMemory:
    """Of a rank whose model has ``count`` parameters.

    num_moments: ``OptimizerConfig.num_moments``. largest_parameter: elements; its gradient is whole before it is
    reduced.
    """
    width = settings.element_bytes
    if stage == 0:
        return _without_zero(count, width, num_moments, is_reduced=data_parallel > 1)
    elements = settings.reduce_bucket_size
    num_buckets = 2 if settings.overlaps_communication and stage < 3 else 1
    bucket = elements * width * num_buckets if settings.contiguous_gradients else 0
    share = -(-count // data_parallel)
    # A bucket is flattened once more to be reduced; a gradient is whole before it goes into one.
    momentary = min(count, elements) * width + largest_parameter * width
    optimizer, update = share * (1 + num_moments) * _FP32, share * _FP32
    if stage == 3:
        momentary = (largest_parameter + _gathered(count, settings, largest_parameter)) * width
        return ZeroMemory(share * width, share * width, optimizer, bucket, momentary, update)
    gradients = share * width
    if stage == 1:
        gradients = count * (width + (_FP32 if settings.accumulates_in_fp32 else 0))
    return ZeroMemory(count * width, gradients, optimizer, bucket, momentary, update)


def _without_zero(count: int, width: int, num_moments: int, *, is_reduced: bool) -> ZeroMemory:
    is_half = width < _FP32
    flat = min(count, _ALL_REDUCE_BUCKET) * width if is_reduced else 0
    states = count * (num_moments + is_half) * _FP32  # fp32 parameters are their own masters
    # 16-bit optimizers copy the gradients to fp32 to step.
    return ZeroMemory(count * width, count * width, states, 0, flat, count * _FP32 if is_half else 0)


def _gathered(count: int, settings: EngineSettings, largest_parameter: int) -> int:
    """Elements of ZeRO-3 parameters that are there whole.

    A parameter that is needed again within the reuse distance stays: the last half of that distance, as the backward
    pass comes back the same way (runtime/zero/partitioned_param_coordinator.py ``__params_to_release``).
    """
    reuse = settings.max_reuse_distance // 2
    return min(count, reuse + settings.prefetch_bucket_size + largest_parameter)
