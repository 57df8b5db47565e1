"""What each pipeline stage of a recipe holds: its layers, and its parameters on each tensor-parallel rank."""

import math
from dataclasses import dataclass

from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.config.run import RunConfig
from megadeberta.layers.cuts import shard_slice
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.optimizer_rules import is_updated_whole, kept_per_element
from megadeberta.layers.parameters import Shapes
from megadeberta.layers.recipe import resolved
from megadeberta.layers.shapes import shapes_of
from megadeberta.layers.stages import StagePlan, plan_stages
from megadeberta.plan.layout import Layout


@dataclass(frozen=True)
class Held:
    """Parameters of one rank."""

    count: int
    largest: int
    """Elements of the largest one."""
    moments: float
    """Numbers that the optimizer keeps for an element besides its weight, on average; the average weight too."""
    largest_divided: int
    """Elements of the largest one, whole, that the optimizer puts together from the parts of several ranks to update
    it; 0 where it updates elements one by one."""


class Recipe:
    """A recipe, cut for many layouts; what several of them share is computed once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.layers = list_layers(config.model, config.objective)
        self.shapes = shapes_of(self.layers)
        self._cuts: dict[tuple[int, int, bool], list[StagePlan]] = {}
        self._held: dict[tuple[tuple[str, ...], int], Held] = {}
        self._settings: dict[tuple[int, int, int, int], EngineSettings] = {}

    @property
    def count(self) -> int:
        """Parameters of the whole model."""
        return sum(_sizes(self.shapes))

    def settings(self, layout: Layout) -> EngineSettings:
        """What the recipe's deepspeed block comes to in a layout, as a run resolves it (``layers.recipe.resolved``)."""
        key = (layout.zero_stage, layout.tensor, layout.pipeline, layout.data)
        if key not in self._settings:
            self._settings[key] = resolved(layout.applied_to(self.config), layout.topology).engine
        return self._settings[key]

    def stages(self, layout: Layout) -> list[StagePlan]:
        """The stages of a layout, as the run cuts them.

        Raises:
            ParallelError: there are more stages than layers.
        """
        key = (layout.pipeline, layout.micro_batch, layout.activation_checkpointing)
        if key not in self._cuts:
            self._cuts[key] = plan_stages(self.layers, layout.micro_batch_of(self.config), layout.pipeline)
        return self._cuts[key]

    def held(self, stage: StagePlan, tensor: int) -> Held:
        """Parameters of the fullest of ``tensor`` ranks: shards of the vocabulary may differ by 8 rows."""
        key = (stage.names, tensor)
        if key not in self._held:
            ranks = [local_shapes(stage, tensor=tensor, rank=rank) for rank in range(tensor)]
            fullest = max(ranks, key=lambda shapes: sum(_sizes(shapes)))
            sizes, optimizer = _sizes(fullest), self.config.optimizer
            moments = kept_per_element(fullest, self.config)
            whole = {name: shape for name, shape in stage.parameters.items() if is_updated_whole(name, optimizer.name)}
            self._held[key] = Held(sum(sizes), max(sizes), moments, max(_sizes(whole), default=0))
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
