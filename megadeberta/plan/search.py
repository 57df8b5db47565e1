"""Every layout of a recipe on a cluster, those that fit, and the one to take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megadeberta.config.batches import BatchSizes
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError, ParallelError
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.memory import RankMemory, fullest, memory_of_stages
from megadeberta.plan.possible import divisors, why_impossible
from megadeberta.plan.rates import Assumptions
from megadeberta.plan.stages import Recipe
from megadeberta.plan.timing import StepTime, step_time
from megadeberta.plan.traffic import StepTraffic, traffic_of_stages
from megadeberta.preflight.validate import validate_run

CLOSE = 1.05
"""Layouts within this factor of the fastest count as equally fast: the estimate cannot tell them apart."""


@dataclass(frozen=True)
class Candidate:
    """One layout and what it costs; memory and traffic of its fullest and of its busiest rank."""

    layout: Layout
    memory: RankMemory
    traffic: StepTraffic
    time: StepTime
    """Of a step with the batch of ``deepspeed.train_batch_size``."""
    run_seconds: float
    """Of all steps, those with other batches too; without checkpoints and failures."""
    fits: bool

    @property
    def complexity(self) -> tuple[int, ...]:
        """What makes a run harder to understand and to debug, most important first."""
        layout = self.layout
        return (
            layout.tensor * layout.pipeline,
            layout.pipeline,
            layout.zero_stage,
            layout.activation_checkpointing,
            layout.sequence_parallel,
        )


@dataclass(frozen=True)
class Search:
    """All candidates, fastest first, with one micro batch each: of those that fit and are about as fast as the fastest,
    the smallest; or if none fits, the smallest."""

    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]
    """Why some layouts were not looked at."""

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """Those that fit into the memory."""
        return tuple(candidate for candidate in self.candidates if candidate.fits)

    @property
    def recommended(self) -> Candidate | None:
        """Of the layouts that are about as fast as the fastest, the simplest one."""
        if not self.fitting:
            return None
        best = self.fitting[0].time.total
        close = [candidate for candidate in self.fitting if candidate.time.total <= best * CLOSE]
        return min(close, key=lambda candidate: (candidate.complexity, candidate.time.total))

    @property
    def nearest(self) -> Candidate:
        """The layout that needs least memory."""
        return min(self.candidates, key=lambda candidate: candidate.memory.device)


def search_layouts(
    config: RunConfig, cluster: Cluster, attention: str, *, source: str, assumed: Assumptions = Assumptions()
) -> Search:
    """Try every layout that divides the cluster.

    Raises:
        ConfigError: the recipe allows no layout at all on this many ranks.
    """
    recipe = Recipe(config)
    found, refused = [], []
    for family in _families(config, cluster):
        layouts = list(_micro_batches(family, config.batches))
        try:
            candidate = _best(recipe, layouts, cluster, attention, source=source, assumed=assumed)
        except (ConfigError, ParallelError) as error:
            refused.append(str(error))
            continue
        if candidate is not None:
            found.append(candidate)
    if not found:
        reason = why_impossible(config, cluster, refused)
        raise ConfigError(f"{source}: no layout is possible on {cluster.world_size} ranks: {reason}")
    found.sort(key=lambda candidate: (candidate.time.total, candidate.complexity))
    return Search(tuple(found), tuple(dict.fromkeys(refused)))


def as_it_is(
    config: RunConfig, cluster: Cluster, attention: str, *, source: str, assumed: Assumptions = Assumptions()
) -> Candidate:
    """The layout that the recipe asks for itself.

    Raises:
        ConfigError: it cannot run on this many ranks.
    """
    algebra, topology = validate_run(config, world_size=cluster.world_size, source=source)
    return assess(Recipe(config), Layout.of_run(config, algebra, topology), cluster, attention, assumed)


def assess(
    recipe: Recipe, layout: Layout, cluster: Cluster, attention: str, assumed: Assumptions = Assumptions()
) -> Candidate:
    """Memory, traffic and time of one layout."""
    memory = fullest(memory_of_stages(recipe, layout, attention))
    traffic = traffic_of_stages(recipe, layout, layout.micro_batch_of(recipe.config))
    return Candidate(
        layout,
        memory,
        max(traffic, key=lambda sent: sent.total),
        step_time(recipe, layout, cluster, traffic, assumed),
        _run_seconds(recipe, layout, cluster, assumed),
        fits=memory.device <= cluster.usable_bytes,
    )


def _run_seconds(recipe: Recipe, layout: Layout, cluster: Cluster, assumed: Assumptions) -> float:
    config, together = recipe.config, layout.micro_batch * layout.data
    seconds = 0.0
    for steps, sequences in config.batches.stretches(config.training.steps):
        of_stretch = replace(layout, accumulation=sequences // together)
        traffic = traffic_of_stages(recipe, of_stretch, of_stretch.micro_batch_of(config))
        seconds += steps * step_time(recipe, of_stretch, cluster, traffic, assumed).total
    return seconds


def _best(
    recipe: Recipe,
    layouts: Sequence[Layout],
    cluster: Cluster,
    attention: str,
    *,
    source: str,
    assumed: Assumptions,
) -> Candidate | None:
    """Of layouts with rising micro batches the first that fits and is about as fast as the fastest that fits; the first
    of all if none fits."""
    tried: list[Candidate] = []
    for layout in layouts:
        if not tried:  # what may be refused does not depend on the micro batch
            validate_run(layout.applied_to(recipe.config), world_size=cluster.world_size, source=source)
        tried.append(assess(recipe, layout, cluster, attention, assumed))
        if not tried[-1].fits:
            break
    fitting = [candidate for candidate in tried if candidate.fits]
    if not fitting:
        return next(iter(tried), None)
    fastest = min(candidate.time.total for candidate in fitting)
    return next(candidate for candidate in fitting if candidate.time.total <= CLOSE * fastest)


def _families(config: RunConfig, cluster: Cluster) -> Iterator[Layout]:
    """Layouts with a micro batch of one."""
    world = cluster.world_size
    for tensor in divisors(config.model.num_attention_heads):
        for pipeline in divisors(world):
            if world % (tensor * pipeline) or cluster.gpus % tensor:  # a tensor group stays inside one node
                continue
            plain = Layout(tensor, pipeline, world // (tensor * pipeline), 1, 1, 1)
            for stage in (1,) if pipeline > 1 else (1, 2, 3):
                for sequence_parallel in (False, True) if tensor > 1 else (False,):
                    for recompute in (False, True):
                        yield replace(
                            plain,
                            zero_stage=stage,
                            sequence_parallel=sequence_parallel,
                            activation_checkpointing=recompute,
                        )


def _micro_batches(family: Layout, batches: BatchSizes) -> Iterator[Layout]:
    """Rising micro batches that divide the batch of every step."""
    share, rest = divmod(batches.divisor, family.data)
    if rest:
        return
    for size in divisors(share):
        yield replace(family, micro_batch=size, accumulation=batches.last // (family.data * size))
