"""``megadeberta plan``: which layouts of a recipe fit a cluster. Torch-free: it also runs on a login node."""

import json
from typing import Annotated

import typer

from megadeberta.config.cli import RecipeArgument
from megadeberta.config.run import RunConfig
from megadeberta.config.terminal import table_console
from megadeberta.errors import ConfigError
from megadeberta.ops.attention.backends import planned_backend
from megadeberta.plan.cluster import Cluster, usual_reserve
from megadeberta.plan.report import (
    describe_layout,
    gib,
    launch_command,
    layouts_table,
    reason,
    search_values,
    stage_rows,
    stages_table,
)
from megadeberta.plan.search import Search, as_it_is, search_layouts
from megadeberta.plan.stages import Recipe
from megadeberta.preflight.run import load_recipe


def plan(
    recipe: RecipeArgument,
    *,
    nodes: Annotated[int, typer.Option(min=1, help="number of machines")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs per machine")],
    memory: Annotated[float, typer.Option(min=0.001, metavar="GIB", help="memory per GPU")],
    reserve: Annotated[
        float | None,
        typer.Option(min=0, metavar="GIB", help="set aside for CUDA, NCCL and memory fragmentation [default: 1 + 6 %]"),
    ] = None,
    bandwidth_intra: Annotated[
        float, typer.Option(min=0.001, metavar="GB/S", help="per GPU inside a node")
    ] = Cluster.bandwidth_intra,
    bandwidth_inter: Annotated[
        float, typer.Option(min=0.001, metavar="GB/S", help="per GPU between nodes")
    ] = Cluster.bandwidth_inter,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="what a GPU sustains on such a model, not its peak")
    ] = Cluster.tflops,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override of the recipe; may be repeated")] = None,
    limit: Annotated[int, typer.Option(min=1, help="layouts to list")] = 12,
    stages: Annotated[
        bool, typer.Option("--stages", help="also the pipeline stages of the recommended layout")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """List the layouts of a recipe that fit a cluster, and recommend one.

    For each: memory of the fullest rank, pipeline bubble, bytes each rank sends per step, and an estimated time.
    docs/plan.md has the formulas, what they were checked against and what they leave out.

    Examples:

        megadeberta plan deberta-v2-xxlarge --nodes 8 --gpus 8 --memory 80

        megadeberta plan deberta-base --nodes 4 --gpus 16 --memory 32 --tflops 40 --bandwidth-intra 120
    """
    config = load_recipe(recipe, set_ or ())
    kept_free = usual_reserve(memory) if reserve is None else reserve
    if kept_free >= memory:
        raise ConfigError(f"--reserve {kept_free:g} leaves nothing of --memory {memory:g}; reserve less")
    cluster = Cluster(nodes, gpus, memory, kept_free, bandwidth_intra, bandwidth_inter, tflops)
    attention = planned_backend(config.training.attention, on_gpu=True)
    search = search_layouts(config, cluster, attention, source=str(recipe))
    if as_json:
        _print_json(search, config, cluster, recipe=str(recipe), stages=stages)
    else:
        _print_tables(search, config, cluster, recipe=str(recipe), limit=limit, stages=stages)
    if search.recommended is None:
        raise ConfigError(f"{recipe}: {reason(search, cluster)}; {_way_out(config, cluster, source=str(recipe))}")


def _print_json(search: Search, config: RunConfig, cluster: Cluster, *, recipe: str, stages: bool) -> None:
    values = search_values(search, config, cluster, recipe=recipe)
    if stages and search.recommended is not None:
        values["stages"] = _stages(search, config)
    typer.echo(json.dumps(values, indent=2))


def _print_tables(
    search: Search, config: RunConfig, cluster: Cluster, *, recipe: str, limit: int, stages: bool
) -> None:
    console = table_console()
    attention = planned_backend(config.training.attention, on_gpu=True)
    parts = Recipe(config)
    console.print(
        f"{recipe}: {parts.count:,} parameters, attention {attention}, {config.engine.global_batch} "
        f"sequences of {config.data.sequence_length} tokens a step\n{cluster.describe()}",
        highlight=False,
    )
    shown = search.fitting or search.candidates
    console.print(layouts_table(shown[:limit], console))
    hidden = len(search.candidates) - len(search.fitting)
    console.print(
        f"{len(search.fitting)} layouts fit"
        + (f", {len(shown) - limit} of them not shown" if len(shown) > limit else "")
        + (f"; {hidden} need more memory" if hidden and search.fitting else ""),
        highlight=False,
    )
    console.print(_own_line(config, cluster, recipe=recipe), highlight=False)
    chosen = search.recommended
    if chosen is None:
        return
    if stages:
        console.print(stages_table(parts, chosen.layout, attention, console))
    overrides = chosen.layout.overrides(config)
    console.print(f"recommended: {describe_layout(chosen.layout)}", highlight=False)
    console.print(f"because: {reason(search, cluster)}", highlight=False)
    console.print(launch_command(recipe, overrides, cluster), highlight=False, soft_wrap=True, markup=False)


def _own_line(config: RunConfig, cluster: Cluster, *, recipe: str) -> str:
    """What the recipe asks for itself, on this cluster."""
    try:
        own = as_it_is(config, cluster, planned_backend(config.training.attention, on_gpu=True), source=recipe)
    except ConfigError as error:
        return f"the recipe as it is does not run here: {error}"
    verdict = "fits" if own.fits else "does not fit"
    return (
        f"the recipe as it is: {describe_layout(own.layout)}: {gib(own.memory.device)} GiB, {verdict}, "
        f"{own.time.total:.2f} s a step"
    )


def _stages(search: Search, config: RunConfig) -> list[dict[str, object]]:
    assert search.recommended is not None
    return stage_rows(
        Recipe(config), search.recommended.layout, planned_backend(config.training.attention, on_gpu=True)
    )


def _way_out(config: RunConfig, cluster: Cluster, *, source: str) -> str:
    """What would make a recipe fit."""
    if not config.engine.offloads_optimizer:
        offloaded = config.with_deepspeed({"zero_optimization.offload_optimizer.device": "cpu"})
        attention = planned_backend(config.training.attention, on_gpu=True)
        if search_layouts(offloaded, cluster, attention, source=source).recommended is not None:
            return "it fits with --set deepspeed.zero_optimization.offload_optimizer.device=cpu"
    return "use more GPUs or larger ones"
