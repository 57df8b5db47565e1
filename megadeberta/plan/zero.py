"""Parameters, gradients and optimizer states under ZeRO, and the buffers that DeepSpeed 0.19.8 makes for them.

Measured by counting the tensors of real engines (tests/unit/plan/test_zero.py).
"""

from dataclasses import dataclass

from megadeberta.config.deepspeed_block import EngineSettings, bytes_of

FP32_BYTES = 4
_ALL_REDUCE_BUCKET = 5 * 10**8
"""Elements that are flattened to be reduced without a bucket (runtime/engine.py ``MEMORY_OPT_ALLREDUCE_SIZE``)."""


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
    num_moments: float,
    data_parallel: int,
    largest_parameter: int,
    is_pipelined: bool = False,
) -> ZeroMemory:
    """Of a rank whose model has ``count`` parameters.

    settings: of a completed recipe in this layout. num_moments: ``Held.moments``. largest_parameter:
    elements; its gradient is whole before it is reduced.
    """
    width, stage = settings.element_bytes, settings.zero_stage
    if stage == 0:
        return _without_zero(count, settings, num_moments, is_reduced=data_parallel > 1)
    if settings.has_bf16_optimizer:
        return _with_bf16_optimizer(count, settings, num_moments, data_parallel)
    wide, sent = bytes_of(settings.accumulation_type), bytes_of(settings.reduction_type)
    in_bucket = (wide, width, sent)[stage - 1]
    # A pipeline makes a second one to reduce (stage_1_and_2.py ``reduce_gradients``).
    num_buckets = 2 if stage < 3 and (settings.overlaps_communication or is_pipelined) else 1
    bucket = settings.reduce_bucket_size * in_bucket * num_buckets if settings.contiguous_gradients else 0
    share = -(-count // data_parallel)
    gradients = count * wide if stage == 1 else share * wide
    optimizer, update = (
        round(share * (1 + num_moments)) * FP32_BYTES,
        0 if settings.keeps_wide_gradients else share * FP32_BYTES,
    )
    if stage == 3:
        momentary = largest_parameter * sent + _gathered(count, settings, largest_parameter) * width
        return ZeroMemory(share * width, gradients, optimizer, bucket, momentary, update)
    momentary = _reduced_at_once(count, settings, largest_parameter, in_bucket)
    if stage == 1 and settings.keeps_wide_gradients:
        momentary += share * wide  # the rank's partition of the reduced gradients, filled bucket by bucket
    return ZeroMemory(count * width, gradients, optimizer, bucket, momentary, update)


def _reduced_at_once(count: int, settings: EngineSettings, largest_parameter: int, in_bucket: int) -> int:
    """A bucket is flattened once more to be reduced, and in the reduction's type if that is another; a gradient that is
    larger than the bucket goes alone; and a gradient is whole before it goes into one."""
    elements = min(count, settings.reduce_bucket_size)
    sent = bytes_of(settings.reduction_type)
    converted = max(elements, largest_parameter) * sent if sent != in_bucket else 0
    return elements * in_bucket + converted + largest_parameter * settings.element_bytes


def _with_bf16_optimizer(count: int, settings: EngineSettings, num_moments: float, data_parallel: int) -> ZeroMemory:
    """fp32 gradients, flattened once more to be reduced. Those of the backward pass are let go when they are added to
    them (``engine/whole_groups.py``), before that."""
    width, sent = settings.element_bytes, bytes_of(settings.reduction_type)
    share = -(-count // data_parallel)
    flat = min(count, _ALL_REDUCE_BUCKET) * (FP32_BYTES + (sent if sent != FP32_BYTES else 0))
    return ZeroMemory(
        count * width, count * FP32_BYTES, round(share * (1 + num_moments)) * FP32_BYTES, 0, max(flat, count * width), 0
    )


def _without_zero(count: int, settings: EngineSettings, num_moments: float, *, is_reduced: bool) -> ZeroMemory:
    width, sent, is_half = settings.element_bytes, bytes_of(settings.reduction_type), settings.is_half
    flat = min(count, _ALL_REDUCE_BUCKET) * (width + (sent if sent != width else 0)) if is_reduced else 0
    states = round(count * (num_moments + is_half)) * FP32_BYTES  # fp32 parameters are their own masters
    # 16-bit optimizers copy the gradients to fp32 to step.
    return ZeroMemory(count * width, count * width, states, 0, flat, count * FP32_BYTES if is_half else 0)


def _gathered(count: int, settings: EngineSettings, largest_parameter: int) -> int:
    """Elements of ZeRO-3 parameters that are there whole.

    A parameter that is needed again within the reuse distance stays: the last half of that distance, as the backward
    pass comes back the same way (runtime/zero/partitioned_param_coordinator.py ``__params_to_release``).
    """
    reuse = settings.max_reuse_distance // 2
    return min(count, reuse + settings.prefetch_bucket_size + largest_parameter)
