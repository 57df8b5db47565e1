"""Checks that need two sections at once, or the number of ranks. Pure: no files, no torch, no process group."""

from megadeberta.config import deepspeed_block
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.layers.objectives import objective_of
from megadeberta.ops.attention.backends import check_setting
from megadeberta.preflight.layout import topology_of
from megadeberta.topology import Topology


def validate_run(config: RunConfig, *, world_size: int, source: str) -> tuple[BatchAlgebra, Topology]:
    """Check a recipe against itself and the number of ranks; return the batch algebra and who does what.

    Raises:
        ConfigError: the same on every rank, since every rank has the same inputs.
    """
    deepspeed_block.check_keys(config.deepspeed, source=source)
    _check_sequence_length(config, source)
    _check_objective(config, source)
    _check_schedule(config, source)
    _check_optimizer(config, source)
    _check_average(config, source)
    _check_profile(config, source)
    _check_replicas(config, source)
    _check_skips(config, source)
    check_setting(config.training.attention, source=source)
    topology = topology_of(config, world_size=world_size, source=source)
    algebra = deepspeed_block.batch_algebra(config.deepspeed, data_parallel=topology.data, source=source)
    _check_stages(config, algebra, source)
    _check_accumulation(config, algebra, source)
    _check_compile(config, source)
    return algebra, topology


def _check_sequence_length(config: RunConfig, source: str) -> None:
    model, length = config.model, config.data.sequence_length
    if length > model.max_position_embeddings and (model.position_biased_input or model.enhanced_mask_decoder):
        raise ConfigError(
            f"{source}: data.sequence_length={length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}, and this model has absolute positions; shorten the sequence or raise "
            "max_position_embeddings (and then set model.max_relative_positions, to keep the distance buckets)"
        )


def _check_objective(config: RunConfig, source: str) -> None:
    try:
        objective_of(config.objective).check(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_replicas(config: RunConfig, source: str) -> None:
    if config.numerics.replicas_every is not None and config.engine.zero_stage == 3:
        raise ConfigError(
            f"{source}: numerics.replicas_every={config.numerics.replicas_every} compares weights that several ranks "
            "hold, and with deepspeed.zero_optimization.stage=3 each is held once; remove it or use stage 0, 1 or 2"
        )


def _check_skips(config: RunConfig, source: str) -> None:
    if config.numerics.skip_limit and config.engine.offloads_optimizer:
        raise ConfigError(
            f"{source}: numerics.skip_limit={config.numerics.skip_limit} passes over steps that an optimizer on the "
            "device leaves out, and deepspeed.zero_optimization.offload_optimizer puts it on the host, which stops at "
            "the first one; remove one of the two"
        )


def _check_schedule(config: RunConfig, source: str) -> None:
    if config.schedule.warmup_steps >= config.training.steps:
        raise ConfigError(
            f"{source}: schedule.warmup_steps={config.schedule.warmup_steps} leaves nothing of training.steps="
            f"{config.training.steps}; make the warm-up shorter than the run"
        )


def _check_optimizer(config: RunConfig, source: str) -> None:
    settings = config.engine
    if not config.optimizer.bias_correction and settings.zero_stage and not settings.allows_untested_optimizer:
        raise ConfigError(
            f"{source}: optimizer.bias_correction=false under ZeRO needs deepspeed.zero_allow_untested_optimizer=true "
            "(DeepSpeed knows torch's AdamW by its class only)"
        )
    name = config.optimizer.name
    if name != "adamw" and settings.zero_stage == 3:
        raise ConfigError(
            f"{source}: optimizer.name={name!r} looks at whole tensors, and with deepspeed.zero_optimization.stage=3 "
            "every tensor is divided among all ranks and would be put together at every step; use stage 1 or 2"
        )
    if name != "adamw" and settings.offloads_optimizer:
        raise ConfigError(
            f"{source}: optimizer.name={name!r} with deepspeed.zero_optimization.offload_optimizer: DeepSpeed's kernel "
            "for the host is AdamW alone; remove one of the two"
        )


def _check_average(config: RunConfig, source: str) -> None:
    decay = config.training.ema_decay
    if decay is not None and config.engine.optimizer_device == "nvme":
        raise ConfigError(
            f"{source}: training.ema_decay={decay:g} with deepspeed.zero_optimization.offload_optimizer.device='nvme': "
            "the weights are in files when they would be averaged; use device='cpu', or `megadeberta checkpoint "
            "average --ema` of kept checkpoints"
        )


def _check_profile(config: RunConfig, source: str) -> None:
    window, steps = config.logging.profile_steps, config.training.steps
    if window and window[1] > steps:
        raise ConfigError(
            f"{source}: logging.profile_steps={list(window)} ends after the last step, training.steps={steps}; choose "
            "steps of the run"
        )


def _check_stages(config: RunConfig, algebra: BatchAlgebra, source: str) -> None:
    together = algebra.micro_batch * algebra.data_parallel
    for number, stage in enumerate(config.training.batch_stages):
        if stage.sequences % together:
            nearest = max(1, round(stage.sequences / together)) * together
            raise ConfigError(
                f"{source}: training.batch_stages.{number}.sequences={stage.sequences} is not a multiple of "
                f"train_micro_batch_size_per_gpu={algebra.micro_batch} x {algebra.data_parallel} data-parallel rank(s) "
                f"= {together}; the nearest that works is {nearest}"
            )


def _check_accumulation(config: RunConfig, algebra: BatchAlgebra, source: str) -> None:
    settings = config.engine
    most = max(config.batches.sizes) // (algebra.micro_batch * algebra.data_parallel)
    if settings.zero_stage or not settings.is_half or settings.says_accumulation_type or most == 1:
        return
    raise ConfigError(
        f"{source}: deepspeed.zero_optimization.stage=0 adds up {most} micro batches in "
        f"{settings.precision}, as DeepSpeed 0.19.8 has no fp32 accumulation without ZeRO; use stage 1 or more, or "
        f"accept it with deepspeed.data_types.grad_accum_dtype={settings.precision!r}"
    )


def _check_compile(config: RunConfig, source: str) -> None:
    if config.training.compile == "none":
        return
    if config.engine.zero_stage == 3:
        raise ConfigError(
            f"{source}: training.compile=layers with deepspeed.zero_optimization.stage=3: DeepSpeed gathers parameters "
            "while a layer runs, which a compiled program cannot wait for; use stage 2 or less, or "
            "training.compile=none"
        )
    if config.training.selective_recompute:
        raise ConfigError(
            f"{source}: training.compile=layers with training.selective_recompute=true: torch.compile itself decides "
            "what a layer keeps for backward; use parallel.activation_checkpointing to keep less, or one of the two"
        )
