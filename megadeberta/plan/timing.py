"""Estimated time of one optimizer step. It ranks layouts; it does not predict a benchmark.

Nothing is assumed to overlap: not the collectives of tensor parallelism with products, nor the reduction of gradients
with the backward pass. The update itself is left out: it is the same work for every layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megadeberta.layers.stages import StagePlan
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.traffic import StepTraffic

_HOST_SECONDS = 2e-3
"""What the host needs to start the kernels of one encoder layer, forward and backward: a floor for small micro batches.
An assumption."""


@dataclass(frozen=True)
class StepTime:
    """Seconds. compute and tensor are those of the slowest stage; bubble is what the pipeline adds to them."""

    compute: float
    tensor: float
    bubble: float
    pipeline: float
    data: float

    @property
    def total(self) -> float:
        """Seconds per optimizer step."""
        return self.compute + self.tensor + self.bubble + self.pipeline + self.data


def step_time(
    layout: Layout, cluster: Cluster, stages: Sequence[StagePlan], traffic: Sequence[StepTraffic]
) -> StepTime:
    """Of a layout whose stages send ``traffic``."""
    tensor_rate = cluster.group_bandwidth(size=layout.tensor, stride=1)
    data_rate = cluster.group_bandwidth(size=layout.data, stride=layout.tensor)
    border_rate = cluster.neighbour_bandwidth(layout.tensor * layout.data)
    rate = cluster.tflops * 1e12 * layout.tensor
    busy = [
        (
            max(stage.operations / rate, _HOST_SECONDS * _num_layers(stage)) * layout.accumulation,
            sent.tensor / tensor_rate,
        )
        for stage, sent in zip(stages, traffic, strict=True)
    ]
    compute, tensor = max(busy, key=sum)
    return StepTime(
        compute=compute,
        tensor=tensor,
        bubble=(compute + tensor) * (layout.pipeline - 1) / layout.accumulation,
        pipeline=max(sent.pipeline for sent in traffic) / border_rate,
        data=max(sent.data for sent in traffic) / data_rate,
    )


def _num_layers(stage: StagePlan) -> int:
    return sum(layer.is_encoder for layer in stage.layers)
