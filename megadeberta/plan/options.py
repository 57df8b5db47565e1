"""The options of ``megadeberta plan`` that describe the machine, and what they come to."""

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


class Overlap(StrEnum):
    """What is to be hidden behind computation."""

    DATA = "data"
    TENSOR = "tensor"
    PIPELINE = "pipeline"
    ALL = "all"


def _positive(help_: str, unit: str | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=0.001, metavar=unit, help=help_)
    return option


GpuOption = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help=f"{', '.join(GPUS)}: fills in what the options below leave out"),
]
MemoryOption = Annotated[float | None, _positive("memory per GPU", "GIB")]
ReserveOption = Annotated[
    float | None,
    typer.Option(min=0, metavar="GIB", help="set aside for CUDA, NCCL and memory fragmentation [default: 1 + 6 %]"),
]
IntraOption = Annotated[float | None, _positive("per GPU inside a node  [default: 300]", "GB/S")]
InterOption = Annotated[float | None, _positive("per GPU between nodes  [default: 40]", "GB/S")]
TflopsOption = Annotated[
    float | None,
    _positive("what a GPU sustains at a hidden size of 2048, not its peak; other sizes follow  [default: 200]"),
]
OverlapOption = Annotated[
    list[Overlap] | None,
    typer.Option("--overlap", help="hide this communication behind computation, as if the engine did; repeatable"),
]
HostOption = Annotated[float, typer.Option(min=0, metavar="MS", help="host time per encoder layer and micro batch")]
MtbfOption = Annotated[float, _positive("mean time between failures of one GPU", "GPU-HOURS")]
RestartOption = Annotated[float, typer.Option(min=0, metavar="S", help="from a failure to training again")]
SaveOption = Annotated[float, _positive("that each rank writes of a checkpoint", "GB/S")]


def cluster_of(
    gpu: Gpu | None, nodes: int, gpus: int, *, memory: float | None, reserve: float | None, **rates: float | None
) -> Cluster:
    """The machine: what is said, then what the type of GPU has, then the defaults.

    Args:
        rates: bandwidth_intra, bandwidth_inter, tflops.

    Raises:
        ConfigError: neither type nor memory is given, or nothing of the memory is left.
    """
    of_type: dict[str, float | None] = {}
    if gpu is not None:
        memory = gpu.memory_gib if memory is None else memory
        peak = device_peak_flops(gpu.device)
        of_type = {
            "bandwidth_intra": gpu.intra,
            "bandwidth_inter": gpu.inter,
            "tflops": gpu.tflops,
            "memory_bandwidth": gpu.memory_bandwidth,
            "peak_tflops": None if peak is None else peak / 1e12,
        }
    if memory is None:
        raise ConfigError(f"a plan needs --gpu TYPE ({', '.join(GPUS)}) or --memory GIB; give one of them")
    kept_free = usual_reserve(memory) if reserve is None else reserve
    if kept_free >= memory:
        raise ConfigError(f"--reserve {kept_free:g} leaves nothing of --memory {memory:g}; reserve less")
    said = {name: value for name, value in (of_type | _given(rates)).items() if value is not None}
    return Cluster(nodes, gpus, memory, kept_free, **said)


def _given(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value for name, value in values.items() if value is not None}


def gpu_of(name: str | None) -> Gpu | None:
    """The type of that name, if one is given."""
    return None if name is None else find_gpu(name)


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
