"""A search as tables for people and as plain values for programs."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from megadeberta.config.terminal import fitting_table
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import RankMemory, memory_of_stages
from megadeberta.plan.run_cost import RunCost
from megadeberta.plan.search import CLOSE, Candidate, Search
from megadeberta.plan.stages import Recipe, count_local

_GIB, _GB = 2**30, 10**9


def layouts_table(candidates: Sequence[Candidate], console: Console) -> Table:
    """One row per layout; memory by what it is for and traffic by degree, where there is room for them."""
    names = ("t x p x d", "ZeRO", "micro x acc", "with")
    short = ("t x p x d", "Z", "micro x acc", "with")
    memory = ("params", "grads", "optim", "activ", "logits", "other")
    return fitting_table(
        console,
        [_layout_row(candidate) for candidate in candidates],
        choices=[
            (*names, "GiB", *memory, "bubble", "TP", "PP", "DP", "step", "days"),
            (*names, "GiB", *memory, "bubble", "TP", "PP", "DP", "step"),
            (*names, "GiB", "optim", "activ", "bubble", "TP", "PP", "DP", "step", "days"),
            (*names, "GiB", "bubble", "step", "days"),
            (*short, "GiB", "step", "days"),
            ("t x p x d", "Z", "micro x acc", "GiB", "step"),
        ],
        text=names,
        title="GiB of the fullest rank; bubble of the pipeline; GB that a rank sends in a step (TP, PP, DP); "
        "estimated seconds per step; days of all steps",
        caption="t x p x d: tensor x pipeline x data; seq: sequence parallel; ckpt: activation checkpointing",
        dim=[number for number, candidate in enumerate(candidates) if not candidate.fits],
    )


def _layout_row(candidate: Candidate) -> dict[str, str]:
    layout, memory, sent = candidate.layout, candidate.memory, candidate.traffic
    sizes = {
        "GiB": memory.device,
        "params": memory.parameters,
        "grads": memory.gradients,
        "optim": memory.optimizer,
        "activ": memory.activations,
        "logits": memory.logits,
        "other": memory.buffers + memory.workspace,
    }
    traffic = {"TP": sent.tensor, "PP": sent.pipeline, "DP": sent.data}
    return {
        "t x p x d": f"{layout.tensor} x {layout.pipeline} x {layout.data}",
        "ZeRO": str(layout.zero_stage),
        "Z": str(layout.zero_stage),
        "micro x acc": f"{layout.micro_batch} x {layout.accumulation}",
        "with": _options(layout, short=True),
        **{name: gib(size) for name, size in sizes.items()},
        "bubble": f"{layout.bubble:.0%}",
        **{name: short_seconds(size / _GB) for name, size in traffic.items()},
        "step": short_seconds(candidate.time.total),
        "days": short_seconds(candidate.run_seconds / 86400),
    }


def stages_table(recipe: Recipe, layout: Layout, attention: str, console: Console) -> Table:
    """One row a pipeline stage: its layers, its parameters and the memory of its ranks."""
    rows = [
        {
            "stage": str(number),
            "layers": _ranges(row["layers"]),
            "parameters": f"{row['parameters']:,}",
            "of a rank": f"{max(row['parameters_of_ranks']):,}",
            "TFLOP": f"{row['operations'] / 1e12:.2f}",
            "GiB of a rank": gib(row["memory"]["device"]),
            "its activations": gib(row["memory"]["activations"]),
        }
        for number, row in enumerate(stage_rows(recipe, layout, attention))
    ]
    names = ("stage", "layers", "parameters")
    return fitting_table(
        console,
        rows,
        choices=[
            (*names, "of a rank", "TFLOP", "GiB of a rank", "its activations"),
            (*names, "GiB of a rank"),
            ("stage", "layers", "GiB of a rank"),
        ],
        text=("layers",),
        fold=("layers",),
        title=f"stages of {describe_layout(layout)}",
    )


def stage_rows(recipe: Recipe, layout: Layout, attention: str) -> list[dict[str, Any]]:
    """The same as plain values; operations are those of one micro batch on all tensor-parallel ranks together."""
    memories = memory_of_stages(recipe, layout, attention)
    return [
        {
            "layers": list(stage.names),
            "copies": sorted(stage.copies),
            "parameters": count_local(stage, tensor=1, rank=0),
            "parameters_of_ranks": [
                count_local(stage, tensor=layout.tensor, rank=rank) for rank in range(layout.tensor)
            ],
            "operations": stage.operations,
            "memory": memory_values(memory),
        }
        for stage, memory in zip(recipe.stages(layout), memories, strict=True)
    ]


def reason(search: Search, cluster: Cluster) -> str:
    """Why the recommended layout; or, if nothing fits, what the smallest one lacks."""
    chosen = search.recommended
    if chosen is None:
        return _what_is_missing(search.nearest, cluster)
    fastest = search.fitting[0]
    words = [
        f"{short_seconds(chosen.time.total)} s a step and {gib(chosen.memory.device)} of "
        f"{gib(cluster.usable_bytes)} GiB"
    ]
    if chosen is fastest:
        words.append(f"the fastest of {len(search.fitting)} layouts that fit")
    else:
        words.append(
            f"within {CLOSE - 1:.0%} of the fastest of {len(search.fitting)} layouts that fit "
            f"({describe_layout(fastest.layout)}), and the simplest of those"
        )
    words += _largest_loss(chosen)
    return "; ".join(words)


def _largest_loss(chosen: Candidate) -> list[str]:
    """What takes most of the step besides computation, if that is much."""
    names = {
        "host": "waiting for the host (a larger batch, fewer GPUs or training.compile would help)",
        "bubble": "the pipeline's bubble",
        "tensor": "tensor parallelism",
        "pipeline": "sending between stages",
        "data": "reducing gradients",
        "offload": "the offloaded optimizer",
    }
    largest = max(names, key=lambda name: getattr(chosen.time, name))
    fraction = getattr(chosen.time, largest) / chosen.time.total
    return [f"{names[largest]} takes {fraction:.0%} of the step"] if fraction > 0.02 else []


def launch_words(recipe: str, overrides: Sequence[str], cluster: Cluster) -> list[str]:
    """The command that starts the layout on this cluster."""
    where = ["--ranks", str(cluster.gpus)] if cluster.nodes == 1 else ["--hostfile", "HOSTS"]
    return ["megadeberta", "launch", recipe, *where, *(word for each in overrides for word in ("--set", each))]


def describe_layout(layout: Layout) -> str:
    """A few words."""
    extra = _options(layout)
    return (
        f"tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}, ZeRO {layout.zero_stage}, micro "
        f"batch {layout.micro_batch} x {layout.accumulation}" + (f", {extra}" if extra else "")
    )


def search_values(
    search: Search, cluster: Cluster, *, recipe: str, overrides: Sequence[str], cost: RunCost | None
) -> dict[str, Any]:
    """Everything, for ``--json``.

    Args:
        overrides: that turn the recipe into the recommended layout.
        cost: of a run in that layout.
    """
    chosen = search.recommended
    return {
        "recipe": recipe,
        "cluster": asdict(cluster),
        "layouts": [candidate_values(candidate) for candidate in search.candidates],
        "refused": list(search.refused),
        "recommended": None if chosen is None else candidate_values(chosen),
        "run": None if cost is None else _cost_values(cost),
        "reason": reason(search, cluster),
        "overrides": list(overrides),
        "command": None if chosen is None else shlex.join(launch_words(recipe, overrides, cluster)),
    }


def _cost_values(cost: RunCost) -> dict[str, Any]:
    days = cost.days_with_failures
    return asdict(cost) | {
        "days_with_failures": days if math.isfinite(days) else None,
        "gpu_hours": cost.gpu_hours if math.isfinite(days) else None,
    }


def candidate_values(candidate: Candidate) -> dict[str, Any]:
    """One layout with bytes, bytes a step and seconds."""
    return {
        "layout": asdict(candidate.layout),
        "fits": candidate.fits,
        "memory": memory_values(candidate.memory),
        "bubble": candidate.layout.bubble,
        "bytes_sent": asdict(candidate.traffic) | {"total": candidate.traffic.total},
        "seconds": asdict(candidate.time) | {"total": candidate.time.total},
        "run_seconds": candidate.run_seconds,
    }


def memory_values(memory: RankMemory) -> dict[str, int]:
    """Bytes by name, and their sum on the device."""
    return asdict(memory) | {"device": memory.device}


def short_seconds(value: float) -> str:
    """Seconds, days or GB with three digits, at most five characters below 100 000: ``0.143``, ``14.3``, ``1430``."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}" if value >= 0.01 else f"{value:.2f}"


def gib(size: float) -> str:
    """``12.34``."""
    return f"{size / _GIB:.2f}"


def _what_is_missing(nearest: Candidate, cluster: Cluster) -> str:
    memory = nearest.memory
    parts = sorted(
        ((value, name) for name, value in asdict(memory).items() if name != "on_host" and value), reverse=True
    )
    most = ", ".join(f"{name} {gib(value)}" for value, name in parts[:3])
    return (
        f"nothing fits: the smallest layout, {describe_layout(nearest.layout)}, needs {gib(memory.device)} GiB a GPU "
        f"and there are {gib(cluster.usable_bytes)}: {most}"
    )


def _options(layout: Layout, *, short: bool = False) -> str:
    wanted = {
        "seq" if short else "sequence parallel": layout.sequence_parallel,
        "ckpt" if short else "activation checkpointing": layout.activation_checkpointing,
    }
    return (" " if short else ", ").join(name for name, is_on in wanted.items() if is_on)


def _ranges(layers: Sequence[str]) -> str:
    """``embeddings, relative, layer.0-5``: encoder layers in a row as one."""
    shown: list[str] = []
    first = last = ""
    for layer in [*layers, ""]:
        stem, _, number = layer.rpartition(".")
        is_next = last and number.isdigit() and last == f"{stem}.{int(number) - 1}"
        if is_next:
            last = layer
            continue
        if first:
            shown.append(first if first == last else f"{first}-{last.rpartition('.')[2]}")
        first = last = layer if number.isdigit() else ""
        if layer and not first:
            shown.append(layer)
    return ", ".join(shown)
