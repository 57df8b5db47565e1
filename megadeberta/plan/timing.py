"""Estimated time of one optimizer step, from a few constants that published runs were fitted with (``rates.py``).

Communication is hidden behind computation where the recipe or ``Assumptions`` says so, and otherwise adds up. The
update on the device is left out: a thousandth of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.stages import StagePlan
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.rates import (
    RING_SECONDS,
    RING_SECONDS_BETWEEN_NODES,
    WEIGHT_BYTES,
    Assumptions,
    exposed,
    width_rate,
)
from megadeberta.plan.stages import Recipe
from megadeberta.plan.traffic import StepTraffic, tensor_bytes

_ADAM_BYTES = 28
"""Read and written by one update of one fp32 parameter with two moments and a gradient."""


@dataclass(frozen=True)
class StepTime:
    """Seconds, of communication only what is not hidden."""

    compute: float
    """Of the slowest stage's GPU."""
    host: float
    """For which that GPU waits for the host to start its kernels."""
    tensor: float
    """Collectives of tensor parallelism, of the same stage."""
    bubble: float
    """What the pipeline adds to these three."""
    pipeline: float
    """Between stages."""
    data: float
    """Between replicas."""
    offload: float
    """Gradients to the host, an update there and parameters back."""

    @property
    def total(self) -> float:
        """Seconds per optimizer step."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class _Stage:
    """Seconds of one stage in a whole step, bubble apart."""

    compute: float
    host: float
    tensor: float

    @property
    def busy(self) -> float:
        return self.compute + self.host + self.tensor


def step_time(
    recipe: Recipe, layout: Layout, cluster: Cluster, traffic: Sequence[StepTraffic], assumed: Assumptions
) -> StepTime:
    """Of a layout whose stages send ``traffic``."""
    settings, batch = recipe.settings(layout), layout.micro_batch_of(recipe.config)
    stages = [
        _stage_time(recipe, stage, layout, cluster, batch=batch, assumed=assumed) for stage in recipe.stages(layout)
    ]
    slowest = max(stages, key=lambda stage: stage.busy)
    border = max(sent.pipeline for sent in traffic) / cluster.border_bandwidth()
    most = max(recipe.held(stage, layout.tensor).count for stage in recipe.stages(layout))
    return StepTime(
        compute=slowest.compute,
        host=slowest.host,
        tensor=slowest.tensor,
        bubble=slowest.busy * (layout.pipeline - 1) / layout.accumulation,
        pipeline=exposed(border, slowest.compute, is_hidden=assumed.hides_pipeline),
        data=_data_seconds(layout, cluster, traffic, settings, beside=slowest.busy, assumed=assumed),
        offload=_offload_seconds(most, layout, cluster, settings) if settings.offloads_optimizer else 0.0,
    )


def _stage_time(
    recipe: Recipe, stage: StagePlan, layout: Layout, cluster: Cluster, *, batch: MicroBatch, assumed: Assumptions
) -> _Stage:
    products = sum(
        layer.rank_operations(batch) / width_rate(layer.model.hidden_size, layout.tensor) for layer in stage.layers
    )
    weights = recipe.held(stage, layout.tensor).count * WEIGHT_BYTES
    device = products / (cluster.tflops * 1e12) + weights / cluster.bytes_per_second
    floor = assumed.host_seconds * sum(layer.is_encoder for layer in stage.layers)
    if layout.zero_stage == 3:
        floor += assumed.zero3_seconds * len(stage.parameters) * layout.data
    tensor = _tensor_seconds(stage, batch, cluster)
    times = layout.accumulation
    return _Stage(
        device * times,
        max(0.0, floor - device) * times,
        exposed(tensor, device, is_hidden=assumed.hides_tensor) * times,
    )


def _tensor_seconds(stage: StagePlan, batch: MicroBatch, cluster: Cluster) -> float:
    """Of one micro batch: bytes over the ring's rate, and the steps of each ring."""
    if batch.tensor == 1:
        return 0.0
    rate = cluster.group_bandwidth(size=batch.tensor, stride=1)
    one_step = RING_SECONDS_BETWEEN_NODES if cluster.leaves_node(size=batch.tensor) else RING_SECONDS
    rounds = sum(
        2 if collective.kind == "all_reduce" else 1 for layer in stage.layers for collective in layer.collectives(batch)
    )
    return tensor_bytes(stage, batch) / rate + rounds * (batch.tensor - 1) * one_step


def _data_seconds(
    layout: Layout,
    cluster: Cluster,
    traffic: Sequence[StepTraffic],
    settings: EngineSettings,
    *,
    beside: float,
    assumed: Assumptions,
) -> float:
    """Between replicas. ZeRO 2 and 3 communicate in every micro batch, the others in the last one."""
    rate = cluster.group_bandwidth(size=layout.data, stride=layout.tensor)
    most = max(traffic, key=lambda sent: sent.data)
    gathered, reduced = most.gathered / rate, (most.data - most.gathered) / rate
    if assumed.scatters and 0 < layout.zero_stage < 3:
        reduced /= 2
    if not settings.overlaps_communication:
        return gathered + reduced
    window = beside if layout.zero_stage > 1 else beside / layout.accumulation
    if assumed.hides_gather:
        return exposed(gathered + reduced, window)
    return gathered + exposed(reduced, window)


def _offload_seconds(count: int, layout: Layout, cluster: Cluster, settings: EngineSettings) -> float:
    """Each rank's partition over its link to the host, and all ranks' updates in the memory of their node."""
    share = count / layout.data if settings.zero_stage else count
    moved = share * (4 + settings.element_bytes) / (cluster.host_link * 1e9)
    return moved + share * _ADAM_BYTES * cluster.gpus / (cluster.host_memory * 1e9)
