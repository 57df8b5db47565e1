"""What this project reads from, and requires of, the deepspeed block: batch algebra, ZeRO stage, precision."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megadeberta.errors import ConfigError

# Top-level keys that DeepSpeed 0.19.8 reads (config.py of runtime/, monitor/, comm/ and datastates/; __init__.py). It
# ignores an unknown key without a word, so "zero_optimisation" would train without ZeRO. Left out: "bfloat16", its old
# name for "bf16", and what it removed and refuses ("nebula", "sparse_gradients" and so on).
KNOWN_KEYS = frozenset(
    """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation
    optimizer scheduler zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer bf16 fp16
    torch_autocast data_types gradient_clipping prescale_gradients gradient_predivide_factor gradient_allreduce_op
    communication_data_type seq_parallel_communication_data_type sequence_parallel_size data_parallel_size
    disable_allgather steps_per_print log_level wall_clock_breakdown timers memory_breakdown dump_state
    disable_python_gc comms_logger flops_profiler tensorboard wandb csv_monitor comet activation_checkpointing
    autotuning checkpoint datastates_ckpt aio data_efficiency dataloader_drop_last pipeline tensor_parallel
    expert_parallel use_data_before_expert_parallelism hybrid_engine weight_quantization compile vocabulary_size
    """.split()
)
OURS = {
    "optimizer": "the `optimizer` section of the recipe",
    "scheduler": "the `schedule` section of the recipe",
    "managed_gradient_accumulation": "nothing: the trainer relies on DeepSpeed's own accumulation boundaries",
    "gradient_allreduce_op": "nothing: the trainer relies on the mean, which is DeepSpeed's default",
    "tensor_parallel": "`parallel.tensor`",
    "sequence_parallel_size": "`parallel.sequence_parallel`",
    "data_parallel_size": "nothing: it is what `parallel.tensor` and `parallel.pipeline` leave of the ranks",
    "amp": "`bf16` or `fp16`",
    "elasticity": "nothing: DeepSpeed 0.19.8 refuses it",
}


@dataclass(frozen=True)
class BatchAlgebra:
    """global_batch = micro_batch x accumulation x data_parallel, in sequences."""

    global_batch: int
    micro_batch: int
    accumulation: int
    data_parallel: int


def check_keys(block: Mapping[str, Any], *, source: str) -> None:
    """Refuse unknown top-level keys and those whose job another part of the recipe has."""
    for key in block:
        if key in OURS:
            raise ConfigError(f"{source}: deepspeed.{key} is not used here; its place is {OURS[key]}")
        if key not in KNOWN_KEYS:
            near = difflib.get_close_matches(key, sorted(KNOWN_KEYS), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "; DeepSpeed 0.19.8 has no such key"
            raise ConfigError(f"{source}: unknown key deepspeed.{key}{hint}")
    for key in ("zero_optimization", "bf16", "fp16"):
        if not isinstance(block.get(key, {}), Mapping):
            raise ConfigError(f"{source}: deepspeed.{key} must be an object, found {block[key]!r}")
    for key in ("offload_optimizer", "offload_param"):
        _check_offload(block.get("zero_optimization", {}), key, source)
    if is_enabled(block, "bf16") and is_enabled(block, "fp16"):
        raise ConfigError(f"{source}: deepspeed.bf16 and deepspeed.fp16 are both enabled; choose one")
    if zero_stage(block) not in (0, 1, 2, 3):
        raise ConfigError(f"{source}: deepspeed.zero_optimization.stage={zero_stage(block)!r} must be 0, 1, 2 or 3")


def _check_offload(zero: Mapping[str, Any], key: str, source: str) -> None:
    name, offload = f"{source}: deepspeed.zero_optimization.{key}", zero.get(key, {})
    if not isinstance(offload, Mapping):
        raise ConfigError(f"{name} must be an object, found {offload!r}")
    device = offload.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        raise ConfigError(f"{name}.device={device!r} must be none, cpu or nvme")
    if device == "nvme" and zero.get("stage", 0) != 3:
        raise ConfigError(
            f"{name}.device='nvme' needs zero_optimization.stage=3, found {zero.get('stage', 0)!r}: DeepSpeed keeps "
            "nothing in files below it; use stage 3, or device='cpu'"
        )
    if device == "nvme" and not isinstance(offload.get("nvme_path"), str):
        raise ConfigError(
            f"{name}.device='nvme' needs nvme_path, a folder on a local disk of every machine, found "
            f"{offload.get('nvme_path')!r}"
        )


def batch_algebra(block: Mapping[str, Any], *, data_parallel: int, source: str) -> BatchAlgebra:
    """Derive the accumulation steps, or say which batch sizes would work.

    ``gradient_accumulation_steps`` need not be given; if it is, it must agree.
    """
    sizes = []
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        value = block.get(key)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{source}: deepspeed.{key} must be a positive integer, found {value!r}")
        sizes.append(value)
    global_batch, micro_batch = sizes
    accumulation, rest = divmod(global_batch, micro_batch * data_parallel)
    if rest or not accumulation:
        nearest = max(1, round(global_batch / (micro_batch * data_parallel))) * micro_batch * data_parallel
        raise ConfigError(
            f"{source}: deepspeed.train_batch_size={global_batch} is not a multiple of train_micro_batch_size_per_gpu="
            f"{micro_batch} x {data_parallel} data-parallel rank(s) = {micro_batch * data_parallel}; "
            f"the nearest that works is train_batch_size={nearest}"
        )
    given = block.get("gradient_accumulation_steps", accumulation)
    if given != accumulation:
        raise ConfigError(
            f"{source}: deepspeed.gradient_accumulation_steps={given!r}, but train_batch_size={global_batch} / "
            f"(train_micro_batch_size_per_gpu={micro_batch} x {data_parallel} rank(s)) = {accumulation}; "
            "leave it out, it is derived"
        )
    return BatchAlgebra(global_batch, micro_batch, accumulation, data_parallel)


def zero_stage(block: Mapping[str, Any]) -> Any:
    return block.get("zero_optimization", {}).get("stage", 0)


def is_enabled(block: Mapping[str, Any], precision: str) -> bool:
    return bool(block.get(precision, {}).get("enabled", False))


def offloads_optimizer(block: Mapping[str, Any]) -> bool:
    return optimizer_device(block) != "none"


def optimizer_device(block: Mapping[str, Any]) -> str:
    """Where ZeRO keeps the optimizer's states: none (where the parameters are), cpu or nvme."""
    return block.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
