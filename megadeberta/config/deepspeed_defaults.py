"""What a deepspeed block leaves out and DeepSpeed 0.19.8 would choose worse: how gradients are added up and sent.

``RunConfig.completed`` writes these values into the recipe, so that a run, its plan, its records and DeepSpeed have the
same ones. Nothing that a recipe says itself is changed.
"""

from collections.abc import Mapping
from typing import Any

from megadeberta.config.deepspeed_block import EngineSettings, with_values

LARGEST_BUCKET = 50_000_000
"""Elements: 200 MB in fp32, where a ring is bound by the links and no longer by its steps (an estimate)."""
SMALLEST_BUCKET = 4 * 2**20
"""Elements: 16 MB in fp32. Biases and LayerNorms still share a bucket; larger gradients are reduced where they are."""
_BUCKETS = 8
"""Of a backward pass. The last one has nothing left to overlap with: an eighth of the reduction."""


def missing_values(block: Mapping[str, Any], *, parameters: int, data_parallel: int, pipeline: int) -> dict[str, Any]:
    """Values for what ``block`` does not say, by dotted key.

    * In bf16 and fp16, gradients are added up in fp32 over micro batches (with ZeRO; DeepSpeed cannot without) and over
      ranks. A ring over 1024 ranks in bf16 loses 4 % (docs/numerics.md); fp32 costs twice the traffic and more memory.
    * ``overlap_comm`` where DeepSpeed has it: not in a pipeline, and for nothing on one data-parallel rank.
    * A bucket that fits the model, where DeepSpeed allocates 500M elements for every model; none where none is used.

    Args:
        parameters: of one rank, before ZeRO partitions them; about is enough.
        pipeline: stages.
    """
    settings = EngineSettings.of(block)
    wanted: dict[str, Any] = {}
    if settings.is_half:
        wanted["communication_data_type"] = "fp32"
        if settings.zero_stage:
            wanted["data_types.grad_accum_dtype"] = "fp32"
    if settings.zero_stage:
        wanted["zero_optimization.overlap_comm"] = data_parallel > 1 and pipeline == 1
        wanted["zero_optimization.reduce_bucket_size"] = bucket_elements(parameters, data_parallel)
    missing = {key: value for key, value in wanted.items() if not _says(block, key)}
    if EngineSettings.of(with_values(block, missing)).has_bf16_optimizer:
        missing.pop("zero_optimization.reduce_bucket_size", None)
    return missing


def bucket_elements(parameters: int, data_parallel: int) -> int:
    """Of the buffer in which gradients are collected to be reduced; on one rank nothing is sent, so the smallest."""
    if data_parallel == 1:
        return SMALLEST_BUCKET
    return max(SMALLEST_BUCKET, min(LARGEST_BUCKET, parameters // _BUCKETS))


def _says(block: Any, key: str) -> bool:
    """Whether the block has a value at the dotted key."""
    name, _, below = key.partition(".")
    if not isinstance(block, Mapping) or name not in block:
        return False
    return _says(block[name], below) if below else True
