"""A model becomes a DeepSpeed engine."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.engine import ZERO_OPTIMIZATION, DeepSpeedEngine
from pydantic import ValidationError
from torch import nn

from megadeberta.config.deepspeed_block import EngineSettings, Precision
from megadeberta.config.first_problem import first_problem
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.engine.process_group import apply_timeout
from megadeberta.engine.whole_groups import work_on_whole_groups
from megadeberta.errors import ConfigError

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# DeepSpeed 0.19.8's pipeline divides by it without asking whether it is there (runtime/pipe/engine.py); the journal has
# the lines that it would print. A recipe's own value wins.
_NEVER_PRINT = {"steps_per_print": 1_000_000_000}
# Its look at every parameter for numbers that are not finite, eleven kernels each and a wait for the device: the norm
# says the same, and ``update_gate.py`` asks that, unless the optimizer runs on the host. Only ZeRO 1 and 2 read it.
_CHECK_THE_NORM_ALONE = {"check_grad_overflow": False}


def build_engine(
    model: nn.Module,
    optimizer: OptimizerConfig,
    *,
    block: Mapping[str, Any],
    timeout_seconds: float,
    mpu: ModelParallelUnit | None = None,
) -> deepspeed.DeepSpeedEngine:
    """Wrap ``model``; the deepspeed block goes in as it stands, so it must be that of a completed recipe.

    All-reduces over the world once, while DeepSpeed sets up its groups.

    Args:
        mpu: where ranks share the tensors of the model; without it every rank is data parallel.

    Raises:
        ConfigError: DeepSpeed refuses the block, or its precision on this device; the same on every rank.
    """
    settings = EngineSettings.of(block)
    _check_precision(settings.precision)
    inner = build_optimizer(model, optimizer, offloaded=settings.offloads_optimizer, is_half=settings.is_half)
    try:
        with _overlap_where_asked():
            engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=inner,
                config=_with_defaults(block, optimizer),
                mpu=mpu,
                dist_init_required=False,
            )
    except (ValidationError, DeepSpeedConfigError) as error:
        raise ConfigError(f"DeepSpeed {deepspeed.__version__} refuses the deepspeed block: {_reason(error)}") from error
    apply_timeout(timeout_seconds)
    work_on_whole_groups(engine.optimizer)
    return engine


def _check_precision(precision: Precision) -> None:
    device = get_accelerator()
    supported = {"fp32": True, "bf16": device.is_bf16_supported(), "fp16": device.is_fp16_supported()}
    if not supported[precision]:
        others = " or ".join(name for name, is_there in supported.items() if is_there)
        raise ConfigError(
            f"deepspeed.{precision}.enabled=true: this device ({device.device_name()}) has no {precision}; use "
            f"{others}, or a machine with GPUs"
        )


def _with_defaults(block: Mapping[str, Any], optimizer: OptimizerConfig) -> dict[str, Any]:
    """The block with what it leaves open and DeepSpeed would choose otherwise."""
    whole = _NEVER_PRINT | dict(block)
    if optimizer.name != "adamw":  # which class DeepSpeed does not know; ``library_optimizer.py`` is made for ZeRO
        whole["zero_allow_untested_optimizer"] = True
    settings = EngineSettings.of(block)
    if settings.precision == "bf16" and not settings.offloads_optimizer:
        whole["bf16"] = _CHECK_THE_NORM_ALONE | dict(block["bf16"])
    return whole


@contextlib.contextmanager
def _overlap_where_asked() -> Iterator[None]:
    """Engines that are made in here have the ZeRO optimizer wherever the block asks for ZeRO with overlap_comm.

    DeepSpeed 0.19.8 gives bf16 with fp32 accumulation under stage 1 to its BF16_Optimizer, which reduces everything
    after the backward pass, by whole groups of parameters, and ignores overlap_comm and reduce_bucket_size. Where
    nothing is to overlap, it stays. Both give the same bits (tests/distributed/test_gradient_types.py).
    """
    choose = DeepSpeedEngine._do_optimizer_sanity_check

    def choose_overlap(engine: DeepSpeedEngine, basic_optimizer: torch.optim.Optimizer) -> str | None:
        chosen = choose(engine, basic_optimizer)
        return ZERO_OPTIMIZATION if engine.zero_optimization() and engine.zero_overlap_comm() else chosen

    DeepSpeedEngine._do_optimizer_sanity_check = choose_overlap
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = choose


def working_type(precision: Precision) -> torch.dtype:
    """Of the parameters that forward and backward use."""
    return _TYPES[precision]


def partitioner(block: Mapping[str, Any], *, mpu: ModelParallelUnit | None = None) -> Callable[[nn.Parameter], None]:
    """What to do with a parameter as soon as it has its values: under ZeRO stage 3 keep this rank's part only.

    Broadcasts over the data-parallel ranks; every rank must pass the same parameters in the same order.
    """
    settings = EngineSettings.of(block)
    if settings.zero_stage != 3:
        return lambda parameter: None
    partitioned: list[Any] = []  # parameters, to which DeepSpeed adds methods
    dtype = working_type(settings.precision)

    def partition(parameter: nn.Parameter) -> None:
        # DeepSpeed takes parameters that are partitioned already for cast already (runtime/engine.py).
        parameter.data = parameter.data.to(dtype)
        if partitioned:
            partitioned[0].convert_to_zero_parameters(param_list=[parameter])
            return
        holder = nn.Module()
        holder.register_parameter("parameter", parameter)
        # As runtime/zero/parameter_offload.py of DeepSpeed 0.19.8 does for a model that comes whole.
        group = None if mpu is None else mpu.get_data_parallel_group()
        deepspeed.zero.Init(module=holder, data_parallel_group=group, config_dict_or_path=dict(block), mpu=mpu)
        partitioned.append(parameter)

    return partition


def _reason(error: ValidationError | DeepSpeedConfigError) -> str:
    if isinstance(error, ValidationError):
        return f"{error.title}: {first_problem(error)}"
    return str(error)
