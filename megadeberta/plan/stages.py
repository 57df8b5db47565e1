"""What each pipeline stage of a recipe holds: its layers, and its parameters on each tensor-parallel rank."""

import math
from dataclasses import dataclass

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, part_of
from megadeberta.config.run import RunConfig
from megadeberta.layers.costs import list_layers
from megadeberta.layers.cuts import shard_slice
from megadeberta.layers.shapes import Shapes, parameter_shapes
from megadeberta.layers.stages import StagePlan, plan_stages
from megadeberta.plan.layout import Layout


@dataclass(frozen=True)
class Held:
    """Parameters of one rank: their number, and the elements of the largest one."""

    count: int
    largest: int


class Recipe:
    """A recipe, cut for many layouts; what several of them share is computed once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.shapes = parameter_shapes(config.model, config.objective)
        self._models = {"": config.model}
        if config.objective.name == "rtd":
            rtd = config.objective.rtd
            self._models |= {GENERATOR: rtd.generator(config.model), DISCRIMINATOR: rtd.discriminator(config.model)}
        self._cuts: dict[tuple[int, int, bool], list[StagePlan]] = {}
        self._held: dict[tuple[tuple[str, ...], int], Held] = {}

    @property
    def count(self) -> int:
        """Parameters of the whole model."""
        return sum(_sizes(self.shapes))

    def model_of(self, layer: str) -> ModelConfig:
        """The shape of the model that a layer belongs to: generator, discriminator or the only one."""
        return self._models[part_of(layer)]

    def stages(self, layout: Layout) -> list[StagePlan]:
        """The stages of a layout, as the run cuts them.

        Raises:
            ParallelError: there are more stages than layers.
        """
        key = (layout.pipeline, layout.micro_batch, layout.activation_checkpointing)
        if key not in self._cuts:
            layers = list_layers(
                self.config.model,
                self.config.objective,
                sequence_length=self.config.data.sequence_length,
                micro_batch=layout.micro_batch,
                recompute=layout.activation_checkpointing,
            )
            self._cuts[key] = plan_stages(layers, self.shapes, layout.pipeline)
        return self._cuts[key]

    def held(self, stage: StagePlan, tensor: int) -> Held:
        """Parameters of the fullest of ``tensor`` ranks: shards of the vocabulary may differ by 8 rows."""
        key = (stage.names, tensor)
        if key not in self._held:
            ranks = [_sizes(local_shapes(stage, tensor=tensor, rank=rank)) for rank in range(tensor)]
            fullest = max(ranks, key=sum)
            self._held[key] = Held(sum(fullest), max(fullest))
        return self._held[key]


def local_shapes(stage: StagePlan, *, tensor: int, rank: int) -> Shapes:
    """What tensor-parallel rank ``rank`` of ``tensor`` holds of a stage: shapes by global name."""
    found = {}
    for name, shape in stage.parameters.items():
        cut = shard_slice(name, shape, tensor=tensor, rank=rank)
        found[name] = shape if cut is None else cut.local_shape
    return found


def count_local(stage: StagePlan, *, tensor: int, rank: int) -> int:
    """Parameters of one tensor-parallel rank of a stage."""
    return sum(_sizes(local_shapes(stage, tensor=tensor, rank=rank)))


def _sizes(shapes: Shapes) -> list[int]:
    return [math.prod(shape) for shape in shapes.values()]
