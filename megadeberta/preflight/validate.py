"""Checks that need two sections at once, or the number of ranks. Pure: no files, no torch, no process group."""

from pydantic import ValidationError

from megadeberta.config import deepspeed_block
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
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
    check_setting(config.training.attention, source=source)
    topology = topology_of(config, world_size=world_size, source=source)
    return deepspeed_block.batch_algebra(config.deepspeed, data_parallel=topology.data, source=source), topology


def _check_sequence_length(config: RunConfig, source: str) -> None:
    model, length = config.model, config.data.sequence_length
    if length > model.max_position_embeddings and (model.position_biased_input or model.enhanced_mask_decoder):
        raise ConfigError(
            f"{source}: data.sequence_length={length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}, and this model has absolute positions; shorten the sequence or raise "
            "max_position_embeddings (and then set model.max_relative_positions, to keep the distance buckets)"
        )


def _check_objective(config: RunConfig, source: str) -> None:
    objective, model = config.objective, config.model
    if objective.name in ("ar", "mlm_ar") and model.conv_kernel_size:
        raise ConfigError(
            f"{source}: objective.name={objective.name!r} predicts the next token, and with model.conv_kernel_size="
            f"{model.conv_kernel_size} the convolution sees it; set model.conv_kernel_size=0"
        )
    if objective.name == "rtd":
        if objective.rtd.decoupled and deepspeed_block.zero_stage(config.deepspeed) == 3:
            # DeepSpeed 0.19.8, runtime/zero/stage3.py: the flat buffer of gradient partitions is overwritten by a
            # backward pass and never cleared, so the part without one would bring its last gradients to the norm.
            raise ConfigError(
                f"{source}: objective.rtd.decoupled=true does not work with deepspeed.zero_optimization.stage=3, which "
                "keeps the gradients of the part that an update leaves alone; use stage 2, or decoupled=false"
            )
        try:
            objective.rtd.generator(model)
        except ValidationError as error:
            raise ConfigError(
                f"{source}: the generator is no model: {error.errors()[0]['ctx']['error']}; set "
                "objective.rtd.generator_layers"
            ) from None


def _check_schedule(config: RunConfig, source: str) -> None:
    if config.schedule.warmup_steps >= config.training.steps:
        raise ConfigError(
            f"{source}: schedule.warmup_steps={config.schedule.warmup_steps} leaves nothing of training.steps="
            f"{config.training.steps}; make the warm-up shorter than the run"
        )


def _check_optimizer(config: RunConfig, source: str) -> None:
    stage = deepspeed_block.zero_stage(config.deepspeed)
    if not config.optimizer.bias_correction and stage and not config.deepspeed.get("zero_allow_untested_optimizer"):
        raise ConfigError(
            f"{source}: optimizer.bias_correction=false under ZeRO needs deepspeed.zero_allow_untested_optimizer=true "
            "(DeepSpeed knows torch's AdamW by its class only)"
        )
