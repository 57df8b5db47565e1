"""What a step's time is made of, and what a run of such steps costs."""

import math
from dataclasses import replace

import pytest

from megadeberta.errors import ConfigError
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.gpus import find_gpu
from megadeberta.plan.rates import HIDDEN, Assumptions, exposed, width_rate
from megadeberta.plan.run_cost import Failures, run_cost
from megadeberta.plan.search import assess, search_layouts
from megadeberta.plan.stages import Recipe
from megadeberta.plan.timing import StepTime
from tests.models import run_config
from tests.unit.plan.small import layout

MODEL = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 1024, "intermediate_size": 4096}
NODES = Cluster(4, 8, 80, 6, bandwidth_intra=300, bandwidth_inter=40, tflops=200)


def _time(
    cluster: Cluster = NODES, *, zero: object = None, assumed: Assumptions = Assumptions(), **of: int
) -> StepTime:
    block = {
        "train_batch_size": 1024,
        "train_micro_batch_size_per_gpu": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": of.get("zero_stage", 1)} | (zero or {}),  # type: ignore[operator]
    }
    config = run_config(model=MODEL, data={"sequence_length": 128}, deepspeed=block)
    chosen = replace(layout(zero_stage=1, data=32, micro_batch=8, accumulation=4), **of)
    return assess(Recipe(config), chosen, cluster, "triton", assumed).time


def test_a_layer_is_as_fast_as_said_at_the_reference_width_and_slower_when_narrow_or_cut() -> None:
    assert width_rate(2048, 1) == pytest.approx(1)
    assert width_rate(768, 1) < 0.7 < 1.2 < width_rate(8192, 1)
    assert width_rate(4096, 8) < width_rate(4096, 2) < width_rate(4096, 1)


def test_hidden_communication_costs_only_what_computation_does_not_cover() -> None:
    assert exposed(1.0, 10.0) == pytest.approx(1 - HIDDEN)
    assert exposed(10.0, 1.0) == pytest.approx(10 - HIDDEN)
    assert exposed(1.0, 10.0, is_hidden=False) == 1.0


def test_overlap_of_the_recipe_shortens_the_reduction_and_nothing_else() -> None:
    plain, hidden = _time(zero={"overlap_comm": False}), _time(zero={"overlap_comm": True})
    assert hidden.data < plain.data
    assert replace(hidden, data=plain.data) == plain


def test_small_micro_batches_wait_for_the_host() -> None:
    large, small = _time(micro_batch=32, accumulation=1), _time(micro_batch=1, accumulation=32)
    assert large.host == 0 < small.host
    assert _time(micro_batch=1, accumulation=32, assumed=Assumptions(host_seconds=0)).host == 0


def test_zero_3_costs_host_time_with_every_rank() -> None:
    few = _time(zero_stage=3, assumed=Assumptions(host_seconds=0))
    many = _time(replace(NODES, nodes=128), zero_stage=3, data=1024, accumulation=1, micro_batch=1)
    assert few.host < 0.1 * many.host
    assert many.host > 5 * many.compute


def test_an_offloaded_optimizer_is_not_free() -> None:
    plain, offloaded = _time(), _time(zero={"offload_optimizer": {"device": "cpu"}})
    assert plain.offload == 0 < offloaded.offload


def test_a_border_between_stages_is_as_fast_as_the_slowest_of_its_kind() -> None:
    wide = Cluster(6, 16, 32, 3, bandwidth_intra=120, bandwidth_inter=6)
    assert wide.border_bandwidth() == 6e9
    assert replace(wide, nodes=1).border_bandwidth() == 120e9


def test_a_ring_is_as_fast_as_the_one_with_fewest_members_on_a_node() -> None:
    # Ranks 0-5, 6-11, 12-17, 18-23 on nodes of 8: the second has two members on its first node.
    straddling = Cluster(3, 8, 80, 5, bandwidth_intra=300, bandwidth_inter=40)
    assert straddling.leaves_node(size=6)
    assert straddling.group_bandwidth(size=6, stride=1) == 80e9
    assert not straddling.leaves_node(size=4, stride=2)


def test_the_paper_s_large_on_six_dgx_2_is_not_cut_into_twelve_stages() -> None:
    from megadeberta.preflight.run import load_recipe

    machine = Cluster(6, 16, 32, 3, bandwidth_intra=120, bandwidth_inter=6, tflops=70)
    config = load_recipe("clusters/deberta-large-6-dgx2", ())  # type: ignore[arg-type]
    chosen = search_layouts(config, machine, "reference", source="large").recommended
    assert chosen is not None
    assert chosen.layout.pipeline <= 3


def test_the_smallest_micro_batch_of_equally_fast_ones_is_taken() -> None:
    from megadeberta.preflight.run import load_recipe

    machine = Cluster(4, 8, 80, 5.8, bandwidth_intra=300, bandwidth_inter=40, tflops=350)
    config = load_recipe("deberta-v2-xxlarge", ())  # type: ignore[arg-type]
    chosen = search_layouts(config, machine, "triton", source="xxlarge").recommended
    assert chosen is not None
    assert chosen.memory.device <= 25 * 2**30


def test_ten_thousand_gpus_are_refused_for_the_reason_and_with_what_works() -> None:
    block = {"train_batch_size": 2048, "train_micro_batch_size_per_gpu": 1}
    config = run_config(model=MODEL | {"num_hidden_layers": 48, "num_attention_heads": 64}, deepspeed=block)
    machine = Cluster(1250, 8, 80, 5)
    with pytest.raises(
        ConfigError,
        match=r"no layout is possible on 10000 ranks: replicas must divide deepspeed.train_batch_size=2,048 = 2\^11, "
        r"and what that leaves of 10,000 = 2\^4 x 5\^4 is at least 625 pipeline stages, of which this model allows 48; "
        r"what works: 1,248 nodes of 8 \(9,984 GPUs\) or train_batch_size=10,000",
    ):
        search_layouts(config, machine, "triton", source="big.json")


def test_failures_take_more_of_a_run_the_more_gpus_it_has() -> None:
    config = run_config(model=MODEL, training={"steps": 86_400}, checkpoint={"interval": 1000})
    few = run_cost(config, 10**9, 1.0, NODES, Failures())
    many = run_cost(config, 10**9, 1.0, replace(NODES, nodes=512), Failures())
    assert few.days == many.days == 1.0
    assert many.goodput < few.goodput < 1
    assert many.days_with_failures == pytest.approx(1 / many.goodput)
    assert few.gpu_hours == pytest.approx(few.days_with_failures * 24 * 32)
    # A job of 4096 GPUs fails every 12 hours; half an interval and a restart are lost each time.
    lost = (500 + 300) / (50_000 * 3600 / 4096)
    assert many.goodput == pytest.approx((1 - lost) / (1 + many.save_seconds / 1000))


def test_a_run_that_fails_before_it_gets_on_never_ends() -> None:
    config = run_config(model=MODEL)
    cost = run_cost(config, 10**9, 1.0, NODES, Failures(gpu_hours=1, restart_seconds=1000))
    assert (cost.goodput, cost.days_with_failures) == (0, math.inf)
    assert "endless days" in cost.describe()


def test_mfu_needs_the_peak_of_the_gpu() -> None:
    config = run_config(model=MODEL)
    assert run_cost(config, 10**9, 1.0, NODES, Failures()).mfu is None
    known = run_cost(config, 10**9, 1.0, replace(NODES, peak_tflops=1000), Failures())
    twice = run_cost(config, 10**9, 1.0, replace(NODES, peak_tflops=500), Failures())
    assert known.mfu is not None
    assert twice.mfu == pytest.approx(2 * known.mfu)


def test_an_unknown_gpu_is_refused_with_the_nearest() -> None:
    assert find_gpu("H100").memory_gib == 80
    assert find_gpu("a100-80GB").tflops == find_gpu("a100_40").tflops
    with pytest.raises(ConfigError, match=r"--gpu h10: unknown type; did you mean 'h100'\?"):
        find_gpu("h10")
