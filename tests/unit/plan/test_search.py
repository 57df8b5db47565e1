"""Layouts of a recipe on a cluster: all that are possible, those that fit, and one recommendation."""

from dataclasses import replace

import pytest

from megadeberta.errors import ConfigError
from megadeberta.plan.cluster import Cluster
from megadeberta.plan.layout import Layout
from megadeberta.plan.report import launch_words, reason
from megadeberta.plan.search import CLOSE, Search, search_layouts
from megadeberta.preflight.validate import validate_run
from tests.models import run_config

BLOCK = {"train_batch_size": 96, "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}}
MODEL = {"num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 256}
SMALL_BUCKET = {"zero_optimization": {"reduce_bucket_size": 1000}}
ONE_NODE = Cluster(1, 8, 16, 1, bandwidth_intra=300, bandwidth_inter=40, tflops=100)


def _search(cluster: Cluster = ONE_NODE, **block: object) -> tuple[Search, object]:
    config = run_config(model=MODEL, deepspeed=BLOCK | SMALL_BUCKET | block)
    return search_layouts(config, cluster, "triton", source="small.json"), config


def test_every_layout_fills_the_cluster_and_keeps_the_global_batch() -> None:
    search, _ = _search()
    assert len({candidate.layout for candidate in search.candidates}) == len(search.candidates)
    for candidate in search.candidates:
        assert candidate.layout.world_size == 8
        assert candidate.layout.global_batch == 96
    found = {(c.layout.tensor, c.layout.pipeline, c.layout.data) for c in search.candidates}
    assert found == {(t, p, 8 // (t * p)) for t in (1, 2, 4) for p in (1, 2, 4) if t * p <= 8}


def test_pipelines_come_with_zero_1_alone_and_the_refusal_is_told() -> None:
    search, _ = _search(Cluster(2, 8, 16, 1, bandwidth_intra=300, bandwidth_inter=40, tflops=100))
    assert {c.layout.zero_stage for c in search.candidates if c.layout.pipeline > 1} == {1}
    assert {c.layout.zero_stage for c in search.candidates if c.layout.pipeline == 1} == {1, 2, 3}
    assert any("more than the 6 encoder layers" in text for text in search.refused)


def test_overrides_turn_the_recipe_into_the_layout() -> None:
    search, config = _search()
    wanted = next(c.layout for c in search.candidates if c.layout.tensor == 2 and c.layout.pipeline == 2)
    values = {text.partition("=")[0]: text.partition("=")[2] for text in wanted.overrides(config)}
    assert values["parallel.tensor"] == "2"
    assert values["deepspeed.pipeline.pipe_partitioned"] == "false"
    applied = wanted.applied_to(config)
    algebra, topology = validate_run(applied, world_size=8, source="applied")
    assert Layout.of_run(applied, algebra, topology) == wanted
    assert wanted.overrides(applied) == []


def test_accumulation_that_the_recipe_gives_is_set_anew_with_the_layout() -> None:
    search, config = _search(gradient_accumulation_steps=24)
    wanted = search.candidates[0].layout
    assert f"deepspeed.gradient_accumulation_steps={wanted.accumulation}" in wanted.overrides(config)
    applied = wanted.applied_to(config)
    assert validate_run(applied, world_size=8, source="applied")[0].accumulation == wanted.accumulation
    assert wanted.overrides(applied) == []


def test_recommended_layout_fits_and_the_fastest_is_hardly_faster() -> None:
    search, config = _search()
    chosen = search.recommended
    assert chosen is not None
    assert chosen.fits
    assert chosen.time.total <= CLOSE * min(c.time.total for c in search.fitting)
    # A small model on one node needs neither tensor parallelism nor a pipeline.
    assert (chosen.layout.tensor, chosen.layout.pipeline, chosen.layout.zero_stage) == (1, 1, 1)
    assert "layouts that fit" in reason(search, ONE_NODE)
    command = launch_words("small.json", chosen.layout.overrides(config), ONE_NODE)
    assert command[:6] == ["megadeberta", "launch", "small.json", "--ranks", "8", "--set"]


def test_a_batch_that_no_replicas_divide_is_cut_into_stages() -> None:
    """As the paper's 96 GPUs and 2048 sequences: 8 replicas do not divide 12, but 4 of two stages do."""
    search, _ = _search(train_batch_size=12)
    assert search.recommended is not None
    assert search.recommended.layout.data in (1, 2, 4)
    assert all(c.layout.data in (1, 2, 4) for c in search.candidates)


def test_what_is_missing_is_named_when_nothing_fits() -> None:
    tiny = replace(ONE_NODE, memory_gib=1.001)
    search, _ = _search(tiny)
    assert search.recommended is None
    text = reason(search, tiny)
    assert "nothing fits: the smallest layout" in text
    assert "GiB a GPU and there are 0.00" in text
    assert any(name in text for name in ("parameters", "workspace", "activations"))


def test_an_impossible_number_of_ranks_is_an_error() -> None:
    cluster = Cluster(1, 7, 16, 1, bandwidth_intra=300, bandwidth_inter=40, tflops=100)
    with pytest.raises(ConfigError, match=r"small\.json: no layout is possible on 7 ranks"):
        _search(cluster)


def test_less_memory_allows_fewer_layouts_and_smaller_micro_batches() -> None:
    smallest, _ = _search(replace(ONE_NODE, memory_gib=1.0, reserve_gib=1.0))
    needs = sorted(candidate.memory.device for candidate in smallest.candidates)  # at a micro batch of one
    middle = needs[len(needs) // 2] / 2**30
    search, _ = _search(replace(ONE_NODE, memory_gib=middle, reserve_gib=0))
    assert 0 < len(search.fitting) < len(search.candidates)
    assert all(candidate.memory.device <= middle * 2**30 for candidate in search.fitting)
    plenty, _ = _search()
    assert max(c.layout.micro_batch for c in search.fitting) < max(c.layout.micro_batch for c in plenty.fitting)
