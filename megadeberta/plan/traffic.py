"""Bytes that one rank sends in one optimizer step: within tensor groups, between stages, between replicas.

Collectives are counted as rings: an all-reduce of n bytes over g ranks sends 2 (g - 1) / g n from each, an all-gather
or a reduce-scatter half of that.
"""

import math
from dataclasses import dataclass

from megadeberta.config.deepspeed_block import EngineSettings, bytes_of
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.stages import StagePlan
from megadeberta.plan.layout import Layout
from megadeberta.plan.stages import Recipe


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that the busiest rank of a stage sends in one optimizer step."""

    tensor: int
    pipeline: int
    data: int
    gathered: int = 0
    """Of ``data``, the parameters that ZeRO 1 and 2 gather after the update."""

    @property
    def total(self) -> int:
        """Of all three kinds."""
        return self.tensor + self.pipeline + self.data


def ring_all_reduce(size: float, ranks: int) -> float:
    """Bytes sent by each rank."""
    return 2 * (ranks - 1) / ranks * size


def ring_all_gather(size: float, ranks: int) -> float:
    """Bytes sent by each rank; ``size`` is that of the whole result. The same for a reduce-scatter."""
    return (ranks - 1) / ranks * size


def traffic_of_stages(recipe: Recipe, layout: Layout, batch: MicroBatch) -> list[StepTraffic]:
    """One entry for each pipeline stage."""
    hidden = batch.own_tokens * recipe.config.model.hidden_size * batch.element_bytes
    found = []
    for number, stage in enumerate(recipe.stages(layout)):
        neighbours = (number > 0) + (number < layout.pipeline - 1)
        count = recipe.held(stage, layout.tensor).count
        one_micro_batch = tensor_bytes(stage, batch)
        copied = sum(math.prod(stage.parameters[name]) for name in stage.copies)
        found.append(
            StepTraffic(
                tensor=round(one_micro_batch * layout.accumulation),
                # The hidden state forwards or its gradient back to each neighbour; gradients of copied tables once.
                pipeline=hidden * neighbours * layout.accumulation + 2 * copied * batch.element_bytes,
                data=round(zero_bytes(count, layout, recipe.settings(layout))),
                gathered=round(gathered_bytes(count, layout, recipe.settings(layout))),
            )
        )
    return found


def zero_bytes(count: int, layout: Layout, settings: EngineSettings) -> float:
    """Bytes that one rank sends to its replicas in a step (DeepSpeed 0.19.8, runtime/zero).

    ZeRO 1 and 2 reduce whole buckets to every rank and keep a part (``allreduce_and_scatter``); ZeRO 2 and 3 reduce
    after every micro batch. Parameters of ZeRO 3 are gathered for the forward pass, and for the backward pass again
    unless they were still there.

    Args:
        settings: of a completed recipe in this layout (``Recipe.settings``).
    """
    ranks, stage = layout.data, settings.zero_stage
    gradients = count * bytes_of(settings.reduction_type)
    gather = ring_all_gather(count * settings.element_bytes, ranks) if stage else 0.0
    if stage < 3:
        return ring_all_reduce(gradients, ranks) * (layout.accumulation if stage == 2 else 1) + gather
    reuse = settings.max_reuse_distance // 2
    again = gather * max(0.0, 1 - reuse / max(1, count))
    return (gather + again + ring_all_gather(gradients, ranks)) * layout.accumulation


def gathered_bytes(count: int, layout: Layout, settings: EngineSettings) -> float:
    """Those of ``zero_bytes`` that ZeRO 1 and 2 send after the update: the new parameters."""
    if settings.zero_stage not in (1, 2):
        return 0.0
    return ring_all_gather(count * settings.element_bytes, layout.data)


def tensor_bytes(stage: StagePlan, batch: MicroBatch) -> float:
    """Bytes that one rank sends within its tensor group for one micro batch."""
    if batch.tensor == 1:
        return 0.0
    return sum(item.sent_bytes(batch.tensor) for layer in stage.layers for item in layer.collectives(batch))
