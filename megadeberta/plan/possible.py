"""Why a number of GPUs allows no layout of a recipe, and the nearest that does: batch, heads and layers, no more."""

from collections.abc import Sequence

from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.stages import cuttable_items
from megadeberta.plan.cluster import Cluster


def why_impossible(config: RunConfig, cluster: Cluster, refused: Sequence[str]) -> str:
    """What stands in the way on this cluster, as its first cause, and what would work.

    Args:
        refused: what the validation of a run said of the layouts that divide the batch.
    """
    world, batch = cluster.world_size, config.batches.divisor
    tensors, most_stages = _tensors(config, cluster.gpus), _most_stages(config)
    if _is_possible(world, batch, tensors, most_stages):
        return refused[0] if refused else "every layout was refused"
    fewest = min(world // (data * tensor) for tensor in tensors for data in _replicas(world // tensor, batch))
    reason = (
        f"replicas must divide {_batch_setting(config)}={batch:,} = {_factors(batch)}, and what that leaves of "
        f"{world:,} = {_factors(world)} is at least {fewest:,} pipeline stages, of which "
        f"this model allows {most_stages}"
    )
    near = [
        nodes
        for nodes in range(cluster.nodes - 1, 0, -1)
        if _is_possible(nodes * cluster.gpus, batch, tensors, most_stages)
    ][:1]
    works = [f"{nodes:,} nodes of {cluster.gpus} ({nodes * cluster.gpus:,} GPUs)" for nodes in near]
    nearest = max(1, round(batch / world)) * world
    works.append(f"train_batch_size={nearest:,}")
    return f"{reason}; what works: {' or '.join(works)}"


def _batch_setting(config: RunConfig) -> str:
    own = "deepspeed.train_batch_size"
    return f"the common divisor of training.batch_stages and {own}" if config.training.batch_stages else own


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _is_possible(world: int, batch: int, tensors: Sequence[int], most_stages: int) -> bool:
    return any(
        world // (tensor * data) <= most_stages
        for tensor in tensors
        if world % tensor == 0
        for data in _replicas(world // tensor, batch)
    )


def _replicas(ranks: int, batch: int) -> list[int]:
    """Data-parallel degrees that divide both."""
    return [data for data in divisors(ranks) if batch % data == 0]


def _tensors(config: RunConfig, gpus: int) -> list[int]:
    """Tensor-parallel degrees: they divide the heads and stay inside a node."""
    return [tensor for tensor in divisors(config.model.num_attention_heads) if gpus % tensor == 0]


def _most_stages(config: RunConfig) -> int:
    items = cuttable_items(list_layers(config.model, config.objective))
    return min(len(items), config.model.num_hidden_layers)


def _factors(number: int) -> str:
    """``2^4 x 5^4``."""
    found: dict[int, int] = {}
    rest, prime = number, 2
    while prime * prime <= rest:
        while rest % prime == 0:
            found[prime] = found.get(prime, 0) + 1
            rest //= prime
        prime += 1
    if rest > 1 or not found:
        found[rest] = found.get(rest, 0) + 1
    return " x ".join(str(base) if power == 1 else f"{base}^{power}" for base, power in found.items())
