"""Which layouts a recipe can run under: checks of the parallel section against model, data and deepspeed block."""

from megadeberta.config.model import ModelConfig
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError, ParallelError
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.vocabulary import VOCABULARY_UNIT
from megadeberta.topology import Topology


def topology_of(config: RunConfig, *, world_size: int, source: str) -> Topology:
    """The topology of a run; pure.

    Raises:
        ConfigError: this model, data or deepspeed block cannot run under it; names the nearest that works.
    """
    parallel = config.parallel
    try:
        topology = Topology.of_world(world_size, pipeline=parallel.pipeline, tensor=parallel.tensor)
    except ParallelError as error:
        raise ConfigError(f"{source}: {error}") from None
    _check_tensor(config, topology, source)
    _check_precision(config, topology, source)
    _check_pipeline(config, topology, source)
    return topology


def _check_tensor(config: RunConfig, topology: Topology, source: str) -> None:
    degree, model = topology.tensor, config.model
    for part, shape in objective_of(config.objective).models(model, config.objective).items():
        if shape.num_attention_heads % degree or shape.intermediate_size % degree:
            whose = f"the {part}'s " if shape.hidden_size != model.hidden_size else "model."
            raise ConfigError(
                f"{source}: parallel.tensor={degree} does not divide {whose}num_attention_heads="
                f"{shape.num_attention_heads} and {whose}intermediate_size={shape.intermediate_size}; the nearest that "
                f"does is {_nearest(shape, degree)}"
            )
    if degree * VOCABULARY_UNIT > model.vocab_size:
        raise ConfigError(
            f"{source}: parallel.tensor={degree} ranks cannot share model.vocab_size={model.vocab_size} rows in units "
            f"of {VOCABULARY_UNIT}; use at most {max(1, model.vocab_size // VOCABULARY_UNIT)}"
        )
    length = config.data.sequence_length
    if config.parallel.sequence_parallel and length % degree:
        raise ConfigError(
            f"{source}: parallel.sequence_parallel needs data.sequence_length={length} to be a multiple of "
            f"parallel.tensor={degree}; the nearest is {max(1, round(length / degree)) * degree}"
        )


def _check_precision(config: RunConfig, topology: Topology, source: str) -> None:
    settings = config.engine
    if topology.tensor > 1 and settings.is_half and settings.zero_stage == 0:
        # Its masks of neighbouring parameters overwrite each other: 2.89 where 3.09 is right, on a small model.
        raise ConfigError(
            f"{source}: parallel.tensor={topology.tensor} with {settings.precision} and "
            "deepspeed.zero_optimization.stage=0: DeepSpeed 0.19.8 counts the gradient norm wrongly there "
            "(runtime/utils.py get_flattened_grad_norm); use stage 1"
        )


def _nearest(model: ModelConfig, degree: int) -> int:
    heads = model.num_attention_heads
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and model.intermediate_size % n == 0]
    return min(fitting, key=lambda n: (abs(n - degree), n))


def _check_pipeline(config: RunConfig, topology: Topology, source: str) -> None:
    stages, settings = topology.pipeline, config.engine
    if stages == 1:
        return
    layers = sum(layer.is_encoder for layer in list_layers(config.model, config.objective))
    stage = settings.zero_stage
    if stages > layers:
        raise ConfigError(
            f"{source}: parallel.pipeline={stages} is more than the {layers} encoder layers; use at most {layers}"
        )
    if stage != 1:
        reason = (
            "counts the gradient norm wrongly with it (runtime/utils.py clip_grad_norm_)"
            if stage == 0
            else "refuses it (a stage keeps its gradients until the last micro batch)"
        )
        raise ConfigError(
            f"{source}: parallel.pipeline={stages} with deepspeed.zero_optimization.stage={stage}: DeepSpeed 0.19.8 "
            f"{reason}; use stage 1, or parallel.pipeline=1"
        )
    if settings.overlaps_communication:
        raise ConfigError(
            f"{source}: deepspeed.zero_optimization.overlap_comm=true with parallel.pipeline={stages}: DeepSpeed "
            "0.19.8 turns it off in a pipeline, whose stages reduce after the last micro batch; leave it out"
        )
    if len(objective_of(config.objective).updates(config.objective)) > 1:
        raise ConfigError(
            f"{source}: objective.rtd.decoupled=true makes two updates a step, and a pipeline runs generator and "
            f"discriminator in one; use decoupled=false, or parallel.pipeline=1"
        )
    partitioned = "pipe_partitioned" if settings.partitions_activations else "grad_partitioned"
    if topology.tensor > 1 and (settings.partitions_activations or settings.partitions_gradients):
        raise ConfigError(
            f"{source}: parallel.pipeline={stages} x parallel.tensor={topology.tensor} needs deepspeed.pipeline."
            f"{partitioned}=false: DeepSpeed would cut what passes between the stages into unequal parts; "
            'set deepspeed.pipeline={"pipe_partitioned": false, "grad_partitioned": false}'
        )
