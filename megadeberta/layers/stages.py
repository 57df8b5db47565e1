"""Where to cut the list of layers into pipeline stages, so that the slowest stage is as fast as can be.

Pure arithmetic on the catalogue; every rank comes to the same cuts.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megadeberta.errors import ParallelError
from megadeberta.layers.layer import Layer
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.parameters import Shapes
from megadeberta.layers.shapes import shapes_of

Fits = Callable[[int, int, int], bool]
"""(stage, first item, end): may this stage hold these items?"""
_Way = tuple[float, float, tuple[int, ...]]
"""Most expensive stage, sum of squares, and the cuts, of the stages so far."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a pipeline."""

    layers: tuple[Layer, ...]
    """In order; a relative table comes before the first layer that reads it."""
    operations: float
    """Of one micro batch, forward and backward."""
    parameters: Shapes
    """All that it holds, copies of other stages' tables included."""
    copies: frozenset[str]
    """Those of them that an earlier stage holds too, and is the owner of."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its layers."""
        return tuple(layer.name for layer in self.layers)


def plan_stages(
    layers: Sequence[Layer], batch: MicroBatch, stages: int, *, fits: Fits | None = None
) -> list[StagePlan]:
    """Cut the layers into stages of consecutive ones.

    A generator's head and the draw stay together: logits over the vocabulary never travel. A relative table is
    no item of its own, as every stage that reads it has a copy.

    Args:
        layers: of the whole model.
        batch: one micro batch, which decides what each layer costs.
        fits: may the stage hold ``cuttable_items(layers)[first:end]``? All may, without it.

    Raises:
        ParallelError: there are fewer items than stages, or no cut fits.
    """
    items, shapes = cuttable_items(layers), shapes_of(layers)
    bounds = balance([sum(layer.operations(batch) for layer in item) for item in items], stages, fits=fits)
    tables = {layer.name: layer for layer in layers if layer.is_copied}
    plans: list[StagePlan] = []
    for start, end in bounds:
        here = _with_tables([layer for item in items[start:end] for layer in item], tables)
        tied = {name for layer in here for name in layer.tied}
        prefixes = tuple(f"{layer.name}." for layer in here)
        parameters = {name: shape for name, shape in shapes.items() if name in tied or name.startswith(prefixes)}
        copies = frozenset(name for name in parameters if any(name in plan.parameters for plan in plans))
        plans.append(StagePlan(here, sum(layer.operations(batch) for layer in here), parameters, copies))
    return plans


def cuttable_items(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers between which a cut may be made; those in one list stay together."""
    items: list[list[Layer]] = []
    for layer in layers:
        if layer.joins_previous:
            items[-1].append(layer)
        elif not layer.is_copied:
            items.append([layer])
    return items


def shared_parameters(plans: Sequence[StagePlan]) -> dict[str, tuple[int, ...]]:
    """The parameters that several stages hold, with these stages; the first of them is the owner."""
    holders: dict[str, tuple[int, ...]] = {}
    for number, plan in enumerate(plans):
        for name in plan.parameters:
            holders[name] = (*holders.get(name, ()), number)
    return {name: stages for name, stages in holders.items() if len(stages) > 1}


def balance(costs: Sequence[float], stages: int, *, fits: Fits | None = None) -> list[tuple[int, int]]:
    """(first, end) of each stage: a cut whose most expensive stage is cheapest.

    Among the ways to the same highest cost, the smaller sum of squares is preferred: the other stages are even too.

    Raises:
        ParallelError: there are fewer items than stages, or no cut fits.
    """
    total = len(costs)
    if stages > total:
        raise ParallelError(
            f"parallel.pipeline={stages} is more than the {total} layers that a cut can separate; use at most {total}"
        )
    best: Mapping[int, _Way] = {0: (0.0, 0.0, (0,))}  # by the number of items in the stages so far
    for stage in range(stages):
        left = stages - stage - 1
        ends = range(stage + 1, total - left + 1) if left else (total,)
        best = {end: way for end in ends if (way := _best_way(best, end, stage, costs, fits)) is not None}
    if total not in best:
        raise ParallelError(
            f"parallel.pipeline={stages}: no cut of the {total} layers fits into the memory of every stage; use more "
            "stages, a larger parallel.tensor or a smaller micro batch"
        )
    cuts = best[total][2]
    return list(itertools.pairwise(cuts))


def _best_way(best: Mapping[int, _Way], end: int, stage: int, costs: Sequence[float], fits: Fits | None) -> _Way | None:
    """The best way to end this stage before item ``end``, given the best ways to end the stage before it."""
    ways = []
    for start, (slowest, squares, cuts) in best.items():
        if start < end and (fits is None or fits(stage, start, end)):
            cost = sum(costs[start:end])
            ways.append((max(slowest, cost), squares + cost * cost, (*cuts, end)))
    return min(ways, default=None)


def _with_tables(layers: Sequence[Layer], tables: Mapping[str, Layer]) -> tuple[Layer, ...]:
    """The layers, each relative table before the first that reads it."""
    found: list[Layer] = []
    for layer in layers:
        if layer.relative is not None and tables[layer.relative] not in found:
            found.append(tables[layer.relative])
        found.append(layer)
    return tuple(found)
