"""What a recipe comes to when its layers are known: its micro batch, and its deepspeed block in full."""

from megadeberta.config.run import RunConfig
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import objective_of
from megadeberta.layers.shapes import count_parameters
from megadeberta.ops.attention.backends import GPU, find_backend
from megadeberta.ops.logits import planned
from megadeberta.topology import Topology


def micro_batch_of(config: RunConfig, *, attention: str = "reference") -> MicroBatch:
    """One micro batch of a run as one rank sees it.

    Args:
        attention: the backend, which decides what is kept; costs and collectives do not depend on it. One for CPUs
            alone means that the run has no GPU.
    """
    on_gpu = GPU in find_backend(attention).devices
    length, parallel = config.data.sequence_length, config.parallel
    return MicroBatch(
        sequences=config.engine.micro_batch,
        length=length,
        slots=objective_of(config.objective).slots(config.objective, length),
        precision=config.engine.precision,
        attention=attention,
        logits=planned(config.training.logits, on_gpu=on_gpu),
        tensor=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor > 1,
        activation_checkpointing=parallel.activation_checkpointing,
        selective_recompute=config.training.selective_recompute,
        compiled=config.training.compile == "layers",
    )


def resolved(config: RunConfig, topology: Topology) -> RunConfig:
    """The recipe as it is run in this layout: nothing in its deepspeed block is left to DeepSpeed's defaults that
    depends on the model's size or on the number of ranks (``RunConfig.completed``)."""
    count = sum(count_parameters(config.model, config.objective).values())
    held = count // (topology.tensor * topology.pipeline)
    return config.completed(parameters=held, data_parallel=topology.data)
