"""Cutting the catalogue's list of layers into stages: known optima, every parameter once."""

import itertools
import math
import random

import pytest

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.errors import ParallelError
from megadeberta.layers.catalogue import WORD_TABLE
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.layers.stages import balance, cuttable_items, plan_stages, shared_parameters

GOALS = [
    {},
    {"name": "mlm_ar"},
    {"name": "rtd"},
    {"name": "rtd", "rtd": {"embedding_sharing": "es"}},
    {"name": "rtd", "rtd": {"embedding_sharing": "nes", "generator_layers": 2}},
]
BASE = ModelConfig()


def _batch(objective: ObjectiveConfig, sequences: int = 1, *, checkpointing: bool = False) -> MicroBatch:
    slots = objective_of(objective).slots(objective, 512)
    return MicroBatch(sequences, 512, slots, activation_checkpointing=checkpointing)


@pytest.mark.parametrize(
    ("costs", "stages", "bounds"),
    [
        ([1, 1, 1, 1], 2, [(0, 2), (2, 4)]),
        ([1, 1, 1, 5], 2, [(0, 3), (3, 4)]),
        ([4, 1, 1, 1, 1], 2, [(0, 1), (1, 5)]),
        ([0, 2, 2, 2, 3], 3, [(0, 2), (2, 4), (4, 5)]),
        ([9, 1, 1, 1, 1], 3, [(0, 1), (1, 3), (3, 5)]),
        ([3], 1, [(0, 1)]),
    ],
)
def test_the_slowest_stage_is_as_fast_as_can_be(costs: list[float], stages: int, bounds: list[tuple[int, int]]) -> None:
    assert balance(costs, stages) == bounds


def test_no_cut_is_better_than_the_one_found() -> None:
    source = random.Random(1)
    for _ in range(60):
        costs = [source.choice([0, 1, 2, 3, 10]) for _ in range(source.randint(1, 9))]
        stages = source.randint(1, len(costs))
        cuts = [(0, *middle, len(costs)) for middle in itertools.combinations(range(1, len(costs)), stages - 1)]
        best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise(cut)) for cut in cuts)
        found = balance(costs, stages)
        assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
        assert max(sum(costs[a:b]) for a, b in found) == best


def test_a_stage_may_refuse_what_does_not_fit() -> None:
    assert balance([1, 1, 1, 1], 2, fits=lambda stage, start, end: stage > 0 or end - start <= 1) == [(0, 1), (1, 4)]
    with pytest.raises(ParallelError, match=r"parallel\.pipeline=2: no cut of the 4 layers fits into the memory"):
        balance([1, 1, 1, 1], 2, fits=lambda stage, start, end: end - start <= 1)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"parallel\.pipeline=3 is more than the 2 layers .*use at most 2"):
        balance([1.0, 2.0], 3)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_stages_hold_the_whole_model_once(goal: dict[str, object], stages: int) -> None:
    objective = ObjectiveConfig.model_validate(goal)
    layers, shapes, batch = list_layers(BASE, objective), parameter_shapes(BASE, objective), _batch(objective)
    plans = plan_stages(layers, batch, stages)
    owned = [name for plan in plans for name in plan.parameters if name not in plan.copies]
    assert sorted(owned) == sorted(shapes)
    assert sum(plan.operations for plan in plans) == pytest.approx(sum(layer.operations(batch) for layer in layers))
    names = [name for plan in plans for name in plan.names]
    assert list(dict.fromkeys(names)) == [layer.name for layer in layers]  # a relative table may come again
    shared = shared_parameters(plans)
    assert sum(len(holders) - 1 for holders in shared.values()) == sum(len(plan.copies) for plan in plans)


def test_word_table_and_relative_table_are_shared_by_the_stages_that_read_them() -> None:
    objective = ObjectiveConfig(name="rtd")
    plans = plan_stages(list_layers(BASE, objective), _batch(objective, 8), 4)
    shared = shared_parameters(plans)
    place = {name: number for number, plan in enumerate(plans) for name in plan.names}
    readers = {0, place["generator.mlm_head"], place["discriminator.embeddings"]}
    assert set(shared[f"generator.{WORD_TABLE}"]) == readers
    for part in ("generator", "discriminator"):
        holders = {n for n, plan in enumerate(plans) if any(f"{part}.layer." in name for name in plan.names)}
        holders |= {n for n, plan in enumerate(plans) if f"{part}.mask_decoder" in plan.names}
        assert set(shared.get(f"{part}.relative.embedding.weight", holders)) == holders


def test_the_head_over_the_vocabulary_makes_its_stage_shorter() -> None:
    objective = ObjectiveConfig()
    plans = plan_stages(list_layers(BASE, objective), _batch(objective, 8), 4)
    encoder = [sum(name.startswith("layer.") for name in plan.names) for plan in plans]
    assert plans[-1].names[-2:] == ("mask_decoder", "mlm_head") and encoder[-1] < max(encoder)
    assert max(plan.operations for plan in plans) < 1.35 * sum(plan.operations for plan in plans) / 4


def test_a_generators_logits_are_never_cut_from_its_samples() -> None:
    layers = list_layers(BASE, ObjectiveConfig(name="rtd"))
    assert ["generator.mlm_head", "generator.sample"] in [[x.name for x in item] for item in cuttable_items(layers)]


def test_recomputation_costs_a_third_more_in_the_encoder_alone() -> None:
    objective = ObjectiveConfig()
    plain, again = (
        {layer.name: layer.operations(batch) for layer in list_layers(BASE, objective)}
        for batch in (_batch(objective), _batch(objective, checkpointing=True))
    )
    assert math.isclose(again["layer.3"], plain["layer.3"] * 4 / 3)
    assert again["mlm_head"] == plain["mlm_head"]
