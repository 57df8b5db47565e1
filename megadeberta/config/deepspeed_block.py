"""What this project reads from, and requires of, the deepspeed block: batch algebra, ZeRO stage, precision.

The only reader of its keys; ``engine/build.py`` hands the block to DeepSpeed as it stands.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from megadeberta.config.deepspeed_sections import check_sections
from megadeberta.config.deepspeed_types import check_plain_types
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
    "tensorboard": "`logging.tensorboard`, which gets every metric (DeepSpeed's monitor has the learning rate alone)",
    "wandb": '`logging.trackers`: ["wandb"], which gets every metric and goes on after a resume',
    "comet": "`logging.trackers`, which has wandb, trackio and mlflow",
    "csv_monitor": "nothing: OUTPUT/metrics.jsonl has every step",
    "amp": "`bf16` or `fp16`",
    "elasticity": "nothing: DeepSpeed 0.19.8 refuses it",
}

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["none", "cpu", "nvme"]
"""Where ZeRO keeps something: where the computation is, in the host's memory, in files."""


@dataclass(frozen=True)
class EngineSettings:
    """The facts that this project takes from a deepspeed block; defaults are those of DeepSpeed 0.19.8.

    Reading never fails: a value that ``check_keys``, ``batch_algebra`` or DeepSpeed refuses counts as not given.
    """

    precision: Precision
    """Of weights and activations in forward and backward; the optimizer's own weights are fp32."""
    zero_stage: int
    global_batch: int
    """Sequences of one optimizer step; 0 = not given."""
    micro_batch: int
    """Sequences of one forward pass on one rank; 0 = not given."""
    accumulation: int | None
    """Micro batches of one optimizer step as the recipe gives them; None = to be derived (``batch_algebra``)."""
    accumulation_type: Precision
    """In which the gradients of a step's micro batches are added up."""
    says_accumulation_type: bool
    """Whether the block itself says so."""
    reduction_type: Precision
    """In which gradients are added up over data-parallel ranks."""
    optimizer_device: Device
    parameter_device: Device
    allows_untested_optimizer: bool
    reduce_bucket_size: int
    """In elements, as the two sizes of stage 3 below."""
    contiguous_gradients: bool
    overlaps_communication: bool
    max_reuse_distance: int
    prefetch_bucket_size: int
    partitions_activations: bool
    """Whether tensor-parallel ranks share out what passes between two pipeline stages."""
    partitions_gradients: bool

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> "EngineSettings":
        """Read a block, checked or not."""
        zero, pipeline = _section(block, "zero_optimization"), _section(block, "pipeline")
        stage, precision = zero.get("stage", 0), _precision(block)
        accumulation, overlap = _section(block, "data_types").get("grad_accum_dtype"), zero.get("overlap_comm")
        return cls(
            precision=precision,
            zero_stage=int(stage) if stage in _STAGES else 0,
            global_batch=_count(block, "train_batch_size"),
            micro_batch=_count(block, "train_micro_batch_size_per_gpu"),
            accumulation=_count(block, "gradient_accumulation_steps") or None,
            accumulation_type=_type(accumulation) or precision,
            says_accumulation_type=_type(accumulation) is not None,
            reduction_type=_type(block.get("communication_data_type")) or precision,
            optimizer_device=_device(zero, "offload_optimizer"),
            parameter_device=_device(zero, "offload_param"),
            allows_untested_optimizer=bool(block.get("zero_allow_untested_optimizer", False)),
            contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
            overlaps_communication=stage == 3 if overlap is None else bool(overlap),
            reduce_bucket_size=_elements(zero, "reduce_bucket_size", 5 * 10**8),
            max_reuse_distance=_elements(zero, "stage3_max_reuse_distance", 10**9),
            prefetch_bucket_size=_elements(zero, "stage3_prefetch_bucket_size", 5 * 10**7),
            partitions_activations=bool(pipeline.get("pipe_partitioned", True)),
            partitions_gradients=bool(pipeline.get("grad_partitioned", True)),
        )

    @property
    def is_half(self) -> bool:
        """Whether forward and backward are in 16 bits."""
        return self.precision != "fp32"

    @property
    def element_bytes(self) -> int:
        """Of a weight, an activation or a gradient of forward and backward."""
        return bytes_of(self.precision)

    @property
    def keeps_wide_gradients(self) -> bool:
        """Whether gradients are added up in another type than forward and backward have, so in tensors of their own."""
        return self.accumulation_type != self.precision

    @property
    def has_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed's BF16_Optimizer makes the update, and not its ZeRO optimizer (``engine/build.py``).

        It keeps bf16 and fp32 gradients of all parameters, and reduces without buckets."""
        return (
            (self.precision, self.zero_stage, self.accumulation_type) == ("bf16", 1, "fp32")
            and not self.overlaps_communication
            and not self.offloads_optimizer
        )

    @property
    def offloads_optimizer(self) -> bool:
        """Whether the optimizer's states are kept elsewhere than the parameters."""
        return self.optimizer_device != "none"

    @property
    def needs_compiler(self) -> str | None:
        """The setting that makes DeepSpeed build a C++ extension at the start, with its value, if there is one.

        DeepSpeed 0.19.8 builds cpu_adam for ``offload_optimizer`` and async_io for NVMe (ops/adam/cpu_adam.py,
        runtime/swap_tensor/); everything else this project uses runs without a compiler.
        """
        if self.offloads_optimizer:
            return f"deepspeed.zero_optimization.offload_optimizer.device={self.optimizer_device!r}"
        if self.parameter_device == "nvme":
            return f"deepspeed.zero_optimization.offload_param.device={self.parameter_device!r}"
        return None


_STAGES = (0, 1, 2, 3)


def bytes_of(precision: Precision) -> int:
    """Of one number."""
    return 4 if precision == "fp32" else 2


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
    check_plain_types(block, source=source)
    check_sections(block, source=source)
    for key in ("offload_optimizer", "offload_param"):
        _check_offload(block.get("zero_optimization", {}), key, source)
    if _is_enabled(block, "bf16") and _is_enabled(block, "fp16"):
        raise ConfigError(f"{source}: deepspeed.bf16 and deepspeed.fp16 are both enabled; choose one")
    stage = block.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in _STAGES:
        raise ConfigError(f"{source}: deepspeed.zero_optimization.stage={stage!r} must be 0, 1, 2 or 3")
    _check_types(block, source)
    if stage == 0 and block.get("zero_optimization", {}).get("overlap_comm"):
        raise ConfigError(
            f"{source}: deepspeed.zero_optimization.overlap_comm needs stage 1, 2 or 3: DeepSpeed 0.19.8 ignores it "
            "without ZeRO"
        )


def _check_types(block: Mapping[str, Any], source: str) -> None:
    """What gradients are added up in must be known to DeepSpeed, and be what its optimizers really use."""
    settings = EngineSettings.of(block)
    named = {
        "data_types.grad_accum_dtype": block.get("data_types", {}).get("grad_accum_dtype"),
        "communication_data_type": block.get("communication_data_type"),
    }
    for key, value in named.items():
        if value is not None and _type(value) is None:
            raise ConfigError(f"{source}: deepspeed.{key}={value!r} must be one of {', '.join(get_args(Precision))}")
    if settings.accumulation_type not in ("fp32", settings.precision):
        raise ConfigError(
            f"{source}: deepspeed.data_types.grad_accum_dtype={settings.accumulation_type!r} with {settings.precision} "
            f"weights would lose digits; use 'fp32'{f' or {settings.precision!r}' if settings.is_half else ''}"
        )
    if settings.zero_stage == 0 and settings.keeps_wide_gradients:
        raise ConfigError(
            f"{source}: deepspeed.data_types.grad_accum_dtype='fp32' with {settings.precision} needs "
            "deepspeed.zero_optimization.stage=1 or more: DeepSpeed 0.19.8 has no fp32 accumulation without ZeRO"
        )


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


def with_values(block: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the block with other values, by dotted key: ``{"zero_optimization.stage": 2}``.

    What should be a section and is none stays, for ``check_keys`` to refuse.
    """
    changed = dict(block)
    for key, value in values.items():
        changed = _with_value(changed, key.split("."), value)
    return changed


def _with_value(section: Any, path: Sequence[str], value: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    name, *below = path
    return {**section, name: _with_value(section.get(name, {}), below, value) if below else value}


def _section(block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = block.get(key)
    return section if isinstance(section, Mapping) else {}


def _precision(block: Mapping[str, Any]) -> Precision:
    return next((name for name in get_args(Precision) if _is_enabled(block, name)), "fp32")


def _type(value: Any) -> Precision | None:
    """DeepSpeed's names of a type: ``DtypeEnum`` of runtime/config.py has more of them for one key than for the other,
    so only those that both take count."""
    return cast(Precision, value) if value in get_args(Precision) else None


def _is_enabled(block: Mapping[str, Any], precision: str) -> bool:
    return bool(_section(block, precision).get("enabled", False))


def _count(block: Mapping[str, Any], key: str) -> int:
    value = block.get(key)
    return value if type(value) is int and value > 0 else 0


def _device(zero: Mapping[str, Any], key: str) -> Device:
    device = _section(zero, key).get("device", "none")
    return cast(Device, device) if device in get_args(Device) else "none"


def _elements(zero: Mapping[str, Any], key: str, default: int) -> int:
    """JSON has 5e8 as a float, and DeepSpeed takes that too."""
    value = zero.get(key)
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else default
