"""The options of ``megadeberta plan`` that describe the machine, and what they come to."""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from megadeberta.observability.device_peaks import device_peak_flops
from megadeberta.ops.attention.backends import AUTO, planned_backend
from megadeberta.plan.cluster import Cluster, usual_reserve
from megadeberta.plan.gpus import GPUS, Gpu, find_gpu
from megadeberta.plan.rates import Assumptions
from megadeberta.plan.run_cost import Failures
from megadeberta.rank.devices import count_local_devices, smallest_device_gib

ASSUMED_TYPE, ASSUMED_GPUS = "a100-80", 8
"""What a plan is made for where neither the options nor this machine say it: a DGX A100."""


class Overlap(StrEnum):
    """What is to be hidden behind computation."""

    DATA = "data"
    TENSOR = "tensor"
    PIPELINE = "pipeline"
    ALL = "all"


_MOST = 1e12
"""Of any unit: above it, infinity included, is a slip of the hand."""


def _positive(help_: str, unit: str | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=0.001, max=_MOST, metavar=unit, help=help_)
    return option


GpusOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help=f"GPUs per machine  [default: {ASSUMED_GPUS}, or those here; see --gpu]"),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help=f"Fills in what the options below leave out: {', '.join(GPUS)}  [default without --memory: the GPUs of "
        f"this machine, or {ASSUMED_TYPE}]",
    ),
]
MemoryOption = Annotated[float | None, _positive("Memory per GPU  [default: of --gpu]", "GIB")]
ReserveOption = Annotated[
    float | None,
    typer.Option(
        min=0, max=_MOST, metavar="GIB", help="Set aside for CUDA, NCCL and memory fragmentation [default: 1 + 6 %]"
    ),
]
IntraOption = Annotated[float | None, _positive("Per GPU inside a node  [default: 300]", "GB/S")]
InterOption = Annotated[float | None, _positive("Per GPU between nodes  [default: 40]", "GB/S")]
TflopsOption = Annotated[
    float | None,
    _positive("What a GPU sustains at a hidden size of 2048, not its peak; other sizes follow  [default: 200]"),
]
OverlapOption = Annotated[
    list[Overlap] | None,
    typer.Option("--overlap", help="Hide this communication behind computation, as if the engine did; repeatable"),
]
HostOption = Annotated[
    float, typer.Option(min=0, max=_MOST, metavar="MS", help="Host time per encoder layer and micro batch")
]
MtbfOption = Annotated[float, _positive("Mean time between failures of one GPU", "GPU-HOURS")]
RestartOption = Annotated[float, typer.Option(min=0, max=_MOST, metavar="S", help="From a failure to training again")]
SaveOption = Annotated[float, _positive("What each rank writes of a checkpoint", "GB/S")]


@dataclass(frozen=True)
class Machine:
    """The GPUs of one machine."""

    gpus: int
    gpu: Gpu | None
    memory_gib: float
    """Of each GPU."""
    assumed: str | None
    """What is assumed because neither the options nor this machine say it, as one line."""


def machine_of(gpus: int | None, type_name: str | None, memory: float | None) -> Machine:
    """What the options say; where they name no GPU, those of this machine; else eight of a common type.

    Raises:
        ConfigError: there is no such type of GPU.
    """
    assumed = []
    if type_name is None and memory is None:
        here = count_local_devices(os.environ)
        memory = smallest_device_gib() if here else None
        if memory is not None:
            return Machine(gpus or here, None, memory, None)
        type_name = ASSUMED_TYPE
        assumed.append(f"GPUs of type {ASSUMED_TYPE}")
    if gpus is None:
        assumed.insert(0, f"{ASSUMED_GPUS} GPUs a machine")
    gpu = None if type_name is None else find_gpu(type_name)
    if memory is None and gpu is not None:
        memory = gpu.memory_gib
    assert memory is not None  # of the option, or of a type
    line = f"assumed: {', '.join(assumed)}; --gpus, --gpu and --memory say what you have" if assumed else None
    return Machine(gpus or ASSUMED_GPUS, gpu, memory, line)


def cluster_of(machine: Machine, nodes: int, *, reserve: float | None, **rates: float | None) -> Cluster:
    """The cluster: what is said, then what the type of GPU has, then the defaults.

    Args:
        rates: bandwidth_intra, bandwidth_inter, tflops.

    Raises:
        ConfigError: nothing of the memory is left.
    """
    of_type: dict[str, float | None] = {}
    if machine.gpu is not None:
        peak = device_peak_flops(machine.gpu.device)
        of_type = {
            "bandwidth_intra": machine.gpu.intra,
            "bandwidth_inter": machine.gpu.inter,
            "tflops": machine.gpu.tflops,
            "memory_bandwidth": machine.gpu.memory_bandwidth,
            "peak_tflops": None if peak is None else peak / 1e12,
        }
    kept_free = usual_reserve(machine.memory_gib) if reserve is None else reserve
    if kept_free >= machine.memory_gib:
        raise ConfigError(
            f"--reserve {kept_free:g} leaves nothing of the {machine.memory_gib:g} GiB of a GPU; reserve less"
        )
    said = {name: value for name, value in (of_type | _given(rates)).items() if value is not None}
    return Cluster(nodes, machine.gpus, machine.memory_gib, kept_free, **said)


def _given(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value for name, value in values.items() if value is not None}


def attention_of(config: RunConfig, gpu: Gpu | None) -> str:
    """The backend that a run takes on such GPUs; without a type the one that needs no trial, and more memory."""
    setting = config.training.attention
    if setting == AUTO and gpu is not None and gpu.takes_kernels:
        return "triton"
    return planned_backend(setting, on_gpu=True)


def assumptions_of(overlap: list[Overlap] | None, host_ms: float) -> Assumptions:
    """What is assumed of the engine; the reduction of gradients is a setting of the recipe."""
    chosen = set(overlap or ())
    return Assumptions(
        host_seconds=host_ms / 1e3,
        hides_tensor=bool(chosen & {Overlap.TENSOR, Overlap.ALL}),
        hides_pipeline=bool(chosen & {Overlap.PIPELINE, Overlap.ALL}),
    )


def overlap_settings(overlap: list[Overlap] | None) -> list[str]:
    """The override of a recipe that hides the reduction of gradients."""
    is_wanted = set(overlap or ()) & {Overlap.DATA, Overlap.ALL}
    return ["deepspeed.zero_optimization.overlap_comm=true"] if is_wanted else []


DEFAULT_FAILURES = Failures()
