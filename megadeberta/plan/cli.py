"""``megadeberta plan``: which layouts of a recipe fit a cluster. Torch-free: it also runs on a login node."""

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from megadeberta.config.cli import RecipeArgument
from megadeberta.config.run import RunConfig
from megadeberta.config.terminal import print_command, table_console
from megadeberta.config.waiting import Waiting
from megadeberta.errors import ConfigError
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.options import (
    DEFAULT_FAILURES,
    GpuOption,
    GpusOption,
    HostOption,
    InterOption,
    IntraOption,
    Machine,
    MemoryOption,
    MtbfOption,
    OverlapOption,
    ReserveOption,
    RestartOption,
    SaveOption,
    TflopsOption,
    assumptions_of,
    attention_of,
    cluster_of,
    machine_of,
    overlap_settings,
)
from megadeberta.plan.rates import Assumptions
from megadeberta.plan.report import (
    describe_layout,
    gib,
    launch_words,
    layouts_table,
    reason,
    search_values,
    short_seconds,
    stage_rows,
    stages_table,
)
from megadeberta.plan.run_cost import Failures, RunCost, run_cost
from megadeberta.plan.search import Search, as_it_is, search_layouts
from megadeberta.plan.stages import Recipe
from megadeberta.preflight.run import load_recipe


@dataclass(frozen=True)
class _Question:
    """What is asked: a recipe on a machine, under assumptions."""

    recipe: str
    settings: tuple[str, ...]
    """Overrides of the recipe that the options come to."""
    config: RunConfig
    machine: Machine
    cluster: Cluster
    attention: str
    assumed: Assumptions
    failures: Failures

    def search(self, config: RunConfig) -> Search:
        with Waiting("comparing layouts"):
            return search_layouts(config, self.cluster, self.attention, source=self.recipe, assumed=self.assumed)

    def overrides(self, search: Search) -> list[str]:
        """All that turns the recipe as it is into the recommended layout."""
        return [*self.settings, *(search.recommended.layout.overrides(self.config) if search.recommended else ())]

    def cost(self, search: Search) -> RunCost | None:
        if search.recommended is None:
            return None
        count, seconds = Recipe(self.config).count, search.recommended.run_seconds / self.config.training.steps
        return run_cost(self.config, count, seconds, self.cluster, self.failures)


def plan(
    recipe: RecipeArgument,
    *,
    nodes: Annotated[int, typer.Option(min=1, max=65536, help="Number of machines")] = 1,
    gpus: GpusOption = None,
    gpu: GpuOption = None,
    memory: MemoryOption = None,
    reserve: ReserveOption = None,
    bandwidth_intra: IntraOption = None,
    bandwidth_inter: InterOption = None,
    tflops: TflopsOption = None,
    overlap: OverlapOption = None,
    host_ms: HostOption = 2.0,
    mtbf: MtbfOption = DEFAULT_FAILURES.gpu_hours,
    restart: RestartOption = DEFAULT_FAILURES.restart_seconds,
    save_rate: SaveOption = DEFAULT_FAILURES.save_rate,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override of the recipe; may be repeated")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Layouts to list")] = 12,
    stages: Annotated[bool, typer.Option("--stages", help="Also the stages of the recommended layout")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object")] = False,
) -> None:
    """List the layouts of a recipe that fit a cluster, and recommend one.

    For each: memory of the fullest rank, pipeline bubble, bytes each rank sends per step, estimated time and days.
    docs/plan.md has the formulas, what they were checked against and what they leave out.

    Examples:

        megadeberta plan deberta-v3-base

        megadeberta plan deberta-v2-xxlarge --nodes 8 --gpus 8 --gpu h100

        megadeberta plan deberta-base --nodes 4 --gpus 16 --memory 32 --tflops 40 --bandwidth-intra 120
    """
    machine, settings = machine_of(gpus, gpu, memory), (*(set_ or ()), *overlap_settings(overlap))
    config = load_recipe(recipe, settings)
    rates = {"bandwidth_intra": bandwidth_intra, "bandwidth_inter": bandwidth_inter, "tflops": tflops}
    cluster = cluster_of(machine, nodes, reserve=reserve, **rates)
    assumed, failures = assumptions_of(overlap, host_ms), Failures(mtbf, restart, save_rate)
    attention = attention_of(config, machine.gpu)
    asked = _Question(str(recipe), settings, config, machine, cluster, attention, assumed, failures)
    search = asked.search(config)
    if as_json:
        _print_json(asked, search, stages=stages)
    else:
        _print_tables(asked, search, limit=limit, stages=stages)
    if search.recommended is None:
        raise ConfigError(f"{recipe}: {reason(search, cluster)}; {_way_out(asked)}")


def _print_json(asked: _Question, search: Search, *, stages: bool) -> None:
    overrides, cost = asked.overrides(search), asked.cost(search)
    values = search_values(search, asked.cluster, recipe=asked.recipe, overrides=overrides, cost=cost)
    values["assumed"] = asked.machine.assumed
    if stages and search.recommended is not None:
        values["stages"] = stage_rows(Recipe(asked.config), search.recommended.layout, asked.attention)
    typer.echo(json.dumps(values, indent=2))


def _print_tables(asked: _Question, search: Search, *, limit: int, stages: bool) -> None:
    console, config = table_console(), asked.config
    parts = Recipe(config)
    is_tried = (
        " (auto takes it if its trial passes)" if config.training.attention != asked.attention == "triton" else ""
    )
    console.print(
        f"{asked.recipe}: {parts.count:,} parameters, attention {asked.attention}{is_tried}, "
        f"{config.batches.describe()} sequences of {config.data.sequence_length} tokens a step\n"
        f"{asked.cluster.describe()}",
        highlight=False,
    )
    if asked.machine.assumed is not None:
        console.print(asked.machine.assumed, highlight=False)
    shown = search.fitting or search.candidates
    console.print(layouts_table(shown[:limit], console))
    hidden = len(search.candidates) - len(search.fitting)
    console.print(
        f"{len(search.fitting)} layouts fit"
        + (f", {len(shown) - limit} of them not shown" if len(shown) > limit else "")
        + (f"; {hidden} need more memory" if hidden and search.fitting else ""),
        highlight=False,
    )
    console.print(_own_line(asked), highlight=False)
    chosen, cost = search.recommended, asked.cost(search)
    if chosen is None or cost is None:
        return
    if stages:
        console.print(stages_table(parts, chosen.layout, asked.attention, console))
    console.print(f"recommended: {describe_layout(chosen.layout)}", highlight=False)
    console.print(f"because: {reason(search, asked.cluster)}", highlight=False)
    console.print(cost.describe(), highlight=False)
    print_command(console, launch_words(asked.recipe, asked.overrides(search), asked.cluster))


def _own_line(asked: _Question) -> str:
    """What the recipe asks for itself, on this cluster."""
    try:
        own = as_it_is(asked.config, asked.cluster, asked.attention, source=asked.recipe, assumed=asked.assumed)
    except ConfigError as error:
        return f"the recipe as it is does not run here: {error}"
    verdict = "fits" if own.fits else "does not fit"
    return (
        f"the recipe as it is: {describe_layout(own.layout)}: {gib(own.memory.device)} GiB, {verdict}, "
        f"{short_seconds(own.time.total)} s a step"
    )


def _way_out(asked: _Question) -> str:
    """What would make a recipe fit."""
    if not asked.config.engine.offloads_optimizer:
        offloaded = asked.config.with_deepspeed({"zero_optimization.offload_optimizer.device": "cpu"})
        if asked.search(offloaded).recommended is not None:
            return "it fits with --set deepspeed.zero_optimization.offload_optimizer.device=cpu"
    return "use more GPUs or larger ones"
