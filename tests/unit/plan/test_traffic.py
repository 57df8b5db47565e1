"""Bytes that a plan says a rank sends: those of real engines for ZeRO, arithmetic for the pipeline."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import distributed

from megadeberta.config.deepspeed_block import Precision
from megadeberta.engine.process_group import start_process_group
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.stages import Recipe
from megadeberta.plan.traffic import ring_all_gather, ring_all_reduce, traffic_of_stages, zero_bytes
from tests.models import run_config
from tests.ranks import run_ranks
from tests.unit.plan.small import layout
from tests.unit.plan.tiny_engine import COUNT, MICRO_BATCH, RANKS, tiny_engine, zero_recipe

# Whose tensor is the whole one, and what a ring sends of it.
COLLECTIVES: dict[str, tuple[str, Callable[[float, int], float]]] = {
    "all_reduce": ("tensor", ring_all_reduce),
    "all_gather_into_tensor": ("output_tensor", ring_all_gather),
    "reduce_scatter_tensor": ("input", ring_all_gather),
}


CASES: tuple[tuple[Precision, Precision, int], ...] = (
    *(("fp32", "fp32", stage) for stage in range(4)),
    *(("bf16", sums, stage) for stage in (1, 2, 3) for sums in ("bf16", "fp32")),
)
"""Precision, in which gradients are added up, and ZeRO stage."""


def _sent_by_a_step(rank: int, world_size: int) -> list[float]:
    """Bytes of the third step's collectives, for each case: the first steps make and trace things."""
    sent = [0.0]

    def count(name: str, whole: str, ring: Callable[[float, int], float]) -> None:
        real = getattr(distributed, name)
        places = {"all_reduce": 0, "all_gather_into_tensor": 0, "reduce_scatter_tensor": 1}

        def counted(*args, **options):
            tensor: torch.Tensor = options[whole] if whole in options else args[places[name]]
            sent[0] += ring(tensor.numel() * tensor.element_size(), world_size)
            return real(*args, **options)

        setattr(distributed, name, counted)

    for name, (whole, ring) in COLLECTIVES.items():
        count(name, whole, ring)
    start_process_group(60.0)
    found = []
    for precision, sums, stage in CASES:
        engine = tiny_engine(zero_recipe(precision, stage, sums))
        for number in range(6):
            if number == 4:
                sent[0] = 0.0
            engine.backward(engine(**MICRO_BATCH)[0]["mlm_loss"][0])
            engine.step()
        found.append(sent[0])
        engine.destroy()
    return found


def test_zero_sends_what_the_engines_do() -> None:
    measured = run_ranks(_sent_by_a_step, RANKS, timeout=200.0)[0]
    for (precision, sums, stage), found in zip(CASES, measured, strict=True):
        wanted = layout(data=RANKS, zero_stage=stage, accumulation=2)
        planned = zero_bytes(COUNT, wanted, zero_recipe(precision, stage, sums).engine)
        assert planned == pytest.approx(found, rel=0.05), f"{precision}, sums in {sums}, stage {stage}"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reducing_in_fp32_doubles_what_a_bf16_recipe_reduces(stage: int) -> None:
    wanted = layout(data=64, zero_stage=stage, accumulation=4)
    narrow, wide = (zero_bytes(COUNT, wanted, zero_recipe("bf16", stage, sums).engine) for sums in ("bf16", "fp32"))
    passes = {1: 1, 2: 4, 3: 4}[stage]
    ring = ring_all_gather if stage == 3 else ring_all_reduce
    assert wide - narrow == pytest.approx(ring(COUNT * 2, 64) * passes)


def test_stages_send_hidden_states_on_and_gradients_back() -> None:
    config = run_config(model={"num_hidden_layers": 6}, deepspeed={"train_batch_size": 64})
    cut = layout(pipeline=3, zero_stage=1, micro_batch=4, accumulation=8)
    recipe = Recipe(config)
    first, middle, last = traffic_of_stages(recipe, cut, cut.micro_batch_of(config))
    hidden = 4 * 64 * config.model.hidden_size * 4  # sequences, tokens, width, bytes of fp32
    tables = [sum(math.prod(s.parameters[n]) for n in s.copies) for s in recipe.stages(cut)]
    assert [tables[0], tables[1] > 0, tables[2] > tables[1]] == [0, True, True]
    assert first.pipeline == 8 * hidden
    assert middle.pipeline == 16 * hidden + 8 * tables[1]
    assert last.pipeline == 8 * hidden + 8 * tables[2]
    assert (first.tensor, first.data) == (0, 0)


def test_rings_that_leave_a_node_have_the_links_of_their_members() -> None:
    cluster = Cluster(4, 8, 80, 5, bandwidth_intra=300, bandwidth_inter=40, tflops=200)
    assert cluster.group_bandwidth(size=8, stride=1) == 300e9
    assert cluster.group_bandwidth(size=4, stride=2) == 300e9
    assert cluster.group_bandwidth(size=32, stride=1) == 300e9  # eight links of 40 are more than 300
    assert cluster.group_bandwidth(size=8, stride=4) == 80e9
    assert cluster.group_bandwidth(size=4, stride=8) == 40e9
